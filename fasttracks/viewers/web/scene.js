// The 3D view: where the eye is, what it sees.

import { Group, Matrix4, PerspectiveCamera, Quaternion, Scene, Vector3, WebGLRenderer } from "three";
import { OrbitControls } from "three/addons/controls/OrbitControls.js";
import { createCameras } from "./cameras.js";
import { quantile } from "./clip.js";
import { createCloud } from "./cloud.js";
import { createAxes, createGrid } from "./ground.js";

const FIELD = 45; // degrees from top to bottom, where the eye is free
const BORDER = 84; // pixels above and below an image looked at through its camera
const MARGINS = { top: 78, bottom: 96, side: 28 }; // pixels of the canvas that home leaves free
const HOME = new Vector3(0.5, 0.34, 1); // from the scene to the eye
const STRAY = 0.7; // of the range that nearly all points take, from its middle
const NEAR = 24; // pixels from a double-click to the point that is meant

export function createScene(canvas, clip, image) {
  const renderer = new WebGLRenderer({ canvas, antialias: true });
  renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
  renderer.setClearColor(0x0f1216);
  const eye = new PerspectiveCamera(FIELD, 1, 0.01, 200);
  const controls = new OrbitControls(eye, canvas);
  controls.enableDamping = true;
  controls.zoomToCursor = true;

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
  const places = core(clip, upright);
  const grid = createGrid(places);
  const drawAxes = createAxes(upright);
  scene.add(world, grid);

  const middle = median(places);
  const radius = Math.max(quantile(Float32Array.from(places, (p) => p.distanceTo(middle)), 0.9), 1e-3);
  const kept = { position: new Vector3(), target: new Vector3() }; // of the free eye
  let shown = { view: "orbit", frame: 0 }; // the state drawn last
  let size = "";
  let untouched = true; // the eye is still at home
  let moved = false; // the eye, since it was drawn last
  controls.addEventListener("start", () => (untouched = false));
  controls.addEventListener("change", () => (moved = true)); // also from events, between frames

  function home() {
    const all = [...places, ...cameras.corners.map((corner) => corner.clone().applyMatrix4(upright))];
    fit(eye, controls.target, all, canvas, middle);
    untouched = true;
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

  /** The shown point drawn nearest to a place on the canvas, in front of others there. */
  function pointAt(x, y, state) {
    const place = new Vector3();
    let found = null;
    let best = NEAR;
    for (let n = 0; n < clip.points; n++) {
      const moving = clip.motion[n] >= state.threshold;
      if (state.show !== "all" && moving !== (state.show === "moving")) continue;
      place.fromArray(clip.positions, 3 * (state.frame * clip.points + n)).applyMatrix4(upright);
      const there = place.clone();
      place.project(eye);
      const u = ((place.x + 1) / 2) * canvas.clientWidth;
      const v = ((1 - place.y) / 2) * canvas.clientHeight;
      const away = Math.hypot(u - x, v - y);
      if (away < best && Math.abs(place.z) < 1) [best, found] = [away, there];
    }
    return found;
  }

  return {
    controls,
    home,
    /** Turn about the point at a place on the canvas from now on; whether there is one. */
    pivot(x, y, state) {
      const point = state.view !== "through" && pointAt(x, y, state);
      if (!point) return false;
      controls.target.copy(point);
      untouched = false;
      return true;
    },
    /** Draw a state, if it differs from what was drawn last. */
    render(state, force) {
      const { clientWidth: width, clientHeight: height } = canvas;
      if (!width || !height) return;
      const resized = size !== `${width} ${height}`;
      if (resized) {
        renderer.setSize(width, height, false);
        eye.aspect = width / height;
        if (untouched && state.view === "orbit") home();
        size = `${width} ${height}`;
      }
      if (shown.view !== state.view) changeView(shown.view, state.view);
      if (shown.view === "follow") {
        const step = new Vector3().subVectors(centres[state.frame], centres[shown.frame]);
        eye.position.add(step);
        controls.target.add(step);
      }
      if (state.view === "through") lookThrough(state.frame);
      else controls.update();
      const same = Object.keys(state).every((key) => state[key] === shown[key]);
      if (same && !moved && !resized && !force) return;
      shown = { ...state };
      moved = false;

      eye.updateProjectionMatrix();
      const pixels = renderer.domElement.height / Math.tan((eye.fov * Math.PI) / 360) / 2;
      const point = (state.view === "through" ? 0.012 : 0.021) * radius;
      cloud.show(state, 2 * point * 2 ** state.size * pixels);
      cameras.show(state.frame, state.view === "through");
      grid.visible = state.ground && state.view !== "through";
      renderer.render(scene, eye);
      if (grid.visible) drawAxes(renderer, eye.quaternion);
    },
  };
}

/**
 * Put the eye where it sees all places, as near as it can be, looking from `HOME`.
 *
 * With the places in axes along the eye's, each border of the free part of the canvas is a plane
 * through the eye, and each place on its inner side a linear inequality in where the eye is.
 */
function fit(eye, target, places, canvas, middle) {
  const turn = new Quaternion().setFromRotationMatrix(
    new Matrix4().lookAt(HOME, new Vector3(), new Vector3(0, 1, 0)));
  const back = turn.clone().invert();
  const half = Math.tan((FIELD * Math.PI) / 360);
  const { clientWidth: width, clientHeight: height } = canvas;
  const slope = (margin, side) => half * Math.max(0.2, (side - 2 * margin) / height);
  const [right, up, down] = [
    slope(Math.min(MARGINS.side, 0.1 * width), width),
    slope(Math.min(MARGINS.top, 0.2 * height), height),
    slope(Math.min(MARGINS.bottom, 0.2 * height), height),
  ];
  const farthest = [-Infinity, -Infinity, -Infinity, -Infinity]; // right, left, up, down
  for (const place of places) {
    const { x, y, z } = place.clone().applyQuaternion(back);
    [x + right * z, right * z - x, y + up * z, down * z - y].forEach((value, i) => {
      farthest[i] = Math.max(farthest[i], value);
    });
  }
  const distance = Math.max(
    (farthest[0] + farthest[1]) / (2 * right), (farthest[2] + farthest[3]) / (up + down));
  const x = (farthest[0] - farthest[1]) / 2;
  const y = (farthest[2] - up * distance + down * distance - farthest[3]) / 2;
  const ahead = middle.clone().applyQuaternion(back).z;
  eye.position.set(x, y, distance).applyQuaternion(turn);
  target.set(x, y, Math.min(ahead, distance - 1e-3)).applyQuaternion(turn);
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

/** Where the points of the static scene and of some frames are, but for a few far strays. */
function core(clip, upright) {
  const place = new Vector3();
  const places = [];
  const frames = [0, 0.5, 1].map((share) => Math.round(share * (clip.frames - 1)));
  const clouds = frames.map((t) => clip.positions.subarray(3 * t * clip.points, 3 * (t + 1) * clip.points));
  for (const cloud of [clip.staticPositions, ...clouds]) {
    for (let i = 0; i < cloud.length; i += 3) {
      places.push(place.fromArray(cloud, i).applyMatrix4(upright).clone());
    }
  }
  const axes = ["x", "y", "z"];
  const along = (axis, share) => quantile(Float32Array.from(places, (p) => p[axis]), share);
  const bounds = axes.map((axis) => [along(axis, 0.02), along(axis, 0.98)]);
  const inside = places.filter((p) => axes.every((axis, i) => {
    const [low, high] = bounds[i];
    return Math.abs(p[axis] - (low + high) / 2) <= STRAY * (high - low);
  }));
  return inside.length ? inside : places;
}

function median(places) {
  return new Vector3(...["x", "y", "z"].map((axis) =>
    quantile(Float32Array.from(places, (p) => p[axis]), 0.5)));
}
