// Points and their trails. Those of all frames lie on the GPU; a frame is a range of them.

import {
  BufferAttribute, BufferGeometry, DataTexture, GLSL3, LineSegments, Points, ShaderMaterial,
} from "three";
import { motionColor } from "./clip.js";

const ROW = 1024; // texels in a row of the table of points

const VERTEX = `
uniform sampler2D table; // of each point: colour, motion
uniform int points, now, show;
uniform float threshold, trail, size;
in float seen;
out vec4 color;
void main() {
  int point = gl_VertexID % points;
  vec4 entry = texelFetch(table, ivec2(point % ${ROW}, point / ${ROW}), 0);
  bool moving = entry.a >= threshold;
  vec4 place = modelViewMatrix * vec4(position, 1.0);
  gl_Position = projectionMatrix * place;
#ifdef TRAIL
  bool shown = moving && show != 1;
  color = vec4(entry.rgb, 0.9 * (1.0 - float(now - gl_VertexID / points) / (trail + 1.0)));
#else
  bool shown = show == 0 || moving == (show == 2);
  color = vec4(entry.rgb * (0.4 + 0.6 * seen), 1.0);
  gl_PointSize = clamp(size * (0.7 + 0.3 * seen) / -place.z, 1.5, 64.0);
#endif
  if (!shown) gl_Position = vec4(0.0, 0.0, 2.0, 1.0); // outside of what is drawn
}`;

const FRAGMENT = `
in vec4 color;
out vec4 pixel;
void main() {
#ifndef TRAIL
  vec2 disc = 2.0 * gl_PointCoord - 1.0;
  if (dot(disc, disc) > 1.0) discard;
#endif
  pixel = color;
}`;

/** The objects to draw, and `show(state, size)`, size in pixels at distance 1. */
export function createCloud(clip) {
  const { frames, points } = clip;
  const tables = { motion: createTable(clip, motionColors(clip.motion)) };
  if (clip.colors) tables.video = createTable(clip, clip.colors);
  const uniforms = {
    table: { value: null }, points: { value: points }, now: { value: 0 }, show: { value: 0 },
    threshold: { value: 0 }, trail: { value: 0 }, size: { value: 1 },
  };
  const material = { uniforms, vertexShader: VERTEX, fragmentShader: FRAGMENT, glslVersion: GLSL3 };

  const positions = new Float32Array(3 * (frames + 1) * points); // the static scene is the last
  positions.set(clip.positions);
  positions.set(clip.staticPositions, clip.positions.length);
  const place = new BufferAttribute(positions, 3);
  const seen = new Uint8Array((frames + 1) * points).fill(1);
  for (let i = 0; i < frames * points; i++) seen[i] = Number.isFinite(clip.error[i]);

  const dots = new Points(new BufferGeometry(), new ShaderMaterial(material));
  dots.geometry.setAttribute("position", place);
  dots.geometry.setAttribute("seen", new BufferAttribute(seen, 1));

  const steps = new Uint32Array(2 * (frames - 1) * points); // each point to itself a frame later
  for (let i = 0; i < steps.length / 2; i++) steps.set([i, i + points], 2 * i);
  const trails = new LineSegments(
    new BufferGeometry(),
    new ShaderMaterial({ ...material, defines: { TRAIL: 1 }, transparent: true, depthWrite: false }),
  );
  trails.geometry.setAttribute("position", place);
  trails.geometry.setIndex(new BufferAttribute(steps, 1));
  for (const object of [dots, trails]) object.frustumCulled = false;

  return {
    objects: [dots, trails],
    show(state, size) {
      const { frame } = state;
      uniforms.table.value = tables[state.colour];
      uniforms.now.value = frame;
      uniforms.show.value = ["all", "still", "moving"].indexOf(state.show);
      uniforms.threshold.value = state.threshold / 255;
      uniforms.trail.value = state.trail;
      uniforms.size.value = size;
      dots.geometry.setDrawRange((state.show === "still" ? frames : frame) * points, points);
      const first = Math.max(0, frame - state.trail);
      trails.geometry.setDrawRange(2 * first * points, 2 * (frame - first) * points);
    },
  };
}

function createTable({ points, motion }, colors) {
  const texels = new Uint8Array(4 * ROW * Math.ceil(points / ROW));
  for (let n = 0; n < points; n++) {
    texels.set(colors.subarray(3 * n, 3 * n + 3), 4 * n);
    texels[4 * n + 3] = motion[n];
  }
  const table = new DataTexture(texels, ROW, texels.length / 4 / ROW);
  table.needsUpdate = true;
  return table;
}

function motionColors(motion) {
  return Uint8Array.from([...motion].flatMap(motionColor));
}
