// The 3D view: where the eye is, what it sees.

import { Group, Matrix4, PerspectiveCamera, Scene, Vector3, WebGLRenderer } from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";
import { createCameras } from "./cameras.js";
import { quantile } from "./clip.js";
import { createCloud } from "./cloud.js";

const FIELD = 45; // degrees from top to bottom, where the eye is free
const BORDER = 84; // pixels above and below an image looked at through its camera

export function createScene(canvas, clip, image) {
  const renderer = new WebGLRenderer({ canvas, antialias: true });
  renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
  renderer.setClearColor(0x0f1216);
  const eye = new PerspectiveCamera(FIELD, 1, 0.01, 200);
  const controls = new OrbitControls(eye, canvas);
  controls.enableDamping = true;

  const poses = Array.from({ length: clip.frames }, (_, t) =>
    new Matrix4().set(...clip.cameras.subarray(12 * t, 12 * t + 12), 0, 0, 0, 1));
  const depth = medianDepth(clip);
  const upright = uprightFrom(poses[clip.frames >> 1], depth);
  const centres = poses.map((m) => new Vector3().setFromMatrixPosition(m).applyMatrix4(upright));

  const cloud = createCloud(clip);
  const cameras = createCameras(clip, poses, 0.16 * depth, image);
  const world = new Group();
  world.add(...cloud.objects, cameras.group);
  world.matrixAutoUpdate = false;
  world.matrix.copy(upright);
  const scene = new Scene();
  scene.add(world);

  const extent = measure(clip, upright, centres);
  const kept = { position: new Vector3(), target: new Vector3() }; // of the free eye
  let shown = { view: "orbit", frame: 0 }; // the state drawn last
  let size = "";

  function home(aspect) {
    const field = 2 * Math.atan(Math.tan((FIELD * Math.PI) / 360) * Math.min(1, aspect));
    controls.target.copy(extent.centre);
    eye.position.set(0.62, 0.42, 1).setLength((0.78 * extent.radius) / Math.sin(field / 2)).add(extent.centre);
  }

  function changeView(from, to) {
    if (to === "through") {
      kept.position.copy(eye.position);
      kept.target.copy(controls.target);
    } else if (from === "through") {
      eye.position.copy(kept.position);
      controls.target.copy(kept.target);
      eye.fov = FIELD;
    }
    controls.enabled = to !== "through";
  }

  function lookThrough(t) {
    const [fx, , , fy] = clip.intrinsics.subarray(5 * t, 5 * t + 5);
    const [height, width] = clip.image_size;
    new Matrix4().multiplyMatrices(upright, poses[t]).scale(new Vector3(1, -1, -1))
      .decompose(eye.position, eye.quaternion, new Vector3());
    const room = Math.max(0.3, 1 - (2 * BORDER) / canvas.clientHeight);
    const half = Math.max(height / 2 / fy / room, (1.04 * width) / 2 / fx / eye.aspect);
    eye.fov = (360 / Math.PI) * Math.atan(half);
  }

  return {
    controls,
    /** Draw a state, if it differs from what was drawn last. */
    render(state, force) {
      const { clientWidth: width, clientHeight: height } = canvas;
      if (!width || !height) return;
      const resized = size !== `${width} ${height}`;
      if (resized) {
        renderer.setSize(width, height, false);
        eye.aspect = width / height;
        if (!size) home(eye.aspect);
        size = `${width} ${height}`;
      }
      if (shown.view !== state.view) changeView(shown.view, state.view);
      if (shown.view === "follow") {
        const step = new Vector3().subVectors(centres[state.frame], centres[shown.frame]);
        eye.position.add(step);
        controls.target.add(step);
      }
      const moved = state.view === "through" ? lookThrough(state.frame) : controls.update();
      const same = Object.keys(state).every((key) => state[key] === shown[key]);
      if (same && !moved && !resized && !force) return;
      shown = { ...state };

      eye.updateProjectionMatrix();
      const pixels = renderer.domElement.height / Math.tan((eye.fov * Math.PI) / 360) / 2;
      const radius = (state.view === "through" ? 0.008 : 0.014) * extent.radius;
      cloud.show(state, 2 * radius * 2 ** state.size * pixels);
      cameras.show(state.frame, state.view === "through");
      renderer.render(scene, eye);
    },
  };
}

/** To y up and a depth of about 1, seen as by the given camera, which stands at the origin. */
function uprightFrom(pose, depth) {
  return new Matrix4().makeScale(1 / depth, -1 / depth, -1 / depth).multiply(pose.clone().invert());
}

function medianDepth({ frames, points, cameras, positions }) {
  const depths = new Float32Array(frames * points);
  for (let i = 0; i < depths.length; i++) {
    const m = cameras.subarray(12 * Math.floor(i / points));
    for (let c = 0; c < 3; c++) depths[i] += m[4 * c + 2] * (positions[3 * i + c] - m[4 * c + 3]);
  }
  return Math.max(quantile(depths, 0.5), 1e-6);
}

/** The middle and radius of points and of cameras, but for a few far strays. */
function measure(clip, upright, centres) {
  const place = new Vector3();
  const places = [...centres];
  for (let i = 0; i < clip.staticPositions.length; i += 3) {
    places.push(place.fromArray(clip.staticPositions, i).applyMatrix4(upright).clone());
  }
  const axis = (name, share) => quantile(Float32Array.from(places, (p) => p[name]), share);
  const centre = new Vector3(...["x", "y", "z"].map((c) => (axis(c, 0.03) + axis(c, 0.97)) / 2));
  const away = (list, share) => quantile(Float32Array.from(list, (p) => p.distanceTo(centre)), share);
  return { centre, radius: Math.max(away(places, 0.9), away(centres, 0.9), 1e-3) };
}
