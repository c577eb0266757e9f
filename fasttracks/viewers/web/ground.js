// What tells directions and sizes: a grid below the scene, and the world's axes in a corner.

import {
  BufferGeometry, CanvasTexture, LineBasicMaterial, LineSegments, OrthographicCamera, Scene,
  Sprite, SpriteMaterial, Vector3, Vector4,
} from "three";
import { quantile } from "./clip.js";

const CELL = 0.25; // side of a square of the grid, in median depths, which the view has as 1
const MOST_CELLS = 60; // along a side
const AXES = [["x", 0xe4606a], ["y", 0x6cc070], ["z", 0x6aa4ee]];
const CORNER = { left: 18, bottom: 74, side: 84 }; // pixels of the canvas that the axes take

/** A grid below places that are y up; level as the middle frame's camera is. */
export function createGrid(places) {
  const along = (axis, share) => quantile(Float32Array.from(places, (p) => p[axis]), share);
  const [left, right] = cells(along("x", 0), along("x", 1));
  const [far, near] = cells(along("z", 0), Math.max(along("z", 1), 0)); // the camera is at 0
  const level = along("y", 0.02);
  const ends = [];
  for (let x = left; x <= right; x++) ends.push([x, far], [x, near]);
  for (let z = far; z <= near; z++) ends.push([left, z], [right, z]);
  const lines = ends.map(([x, z]) => new Vector3(CELL * x, level, CELL * z));
  const faint = { color: 0x8fa0b5, opacity: 0.2, transparent: true, depthWrite: false };
  return new LineSegments(new BufferGeometry().setFromPoints(lines), new LineBasicMaterial(faint));
}

/** Draws the directions of the world's axes, that `upright` turns, as they are seen. */
export function createAxes(upright) {
  const scene = new Scene();
  AXES.forEach(([name, color], i) => {
    const tip = new Vector3().setComponent(i, 1).transformDirection(upright);
    const line = new BufferGeometry().setFromPoints([new Vector3(), tip]);
    const label = letter(name, color);
    label.position.copy(tip).multiplyScalar(1.3);
    scene.add(new LineSegments(line, new LineBasicMaterial({ color })), label);
  });
  const eye = new OrthographicCamera(-1.6, 1.6, 1.6, -1.6, 0, 4);
  return (renderer, quaternion) => {
    eye.quaternion.copy(quaternion);
    eye.position.set(0, 0, 2).applyQuaternion(quaternion);
    const { left, bottom, side } = CORNER;
    const whole = renderer.getViewport(new Vector4());
    renderer.autoClear = false;
    renderer.setViewport(left, bottom, side, side);
    renderer.render(scene, eye);
    renderer.setViewport(whole);
    renderer.autoClear = true;
  };
}

/** The first and last line of a grid over a range. */
function cells(low, high) {
  const first = Math.floor(low / CELL) - 1;
  return [first, Math.min(Math.ceil(high / CELL) + 1, first + MOST_CELLS)];
}

function letter(text, color) {
  const canvas = new OffscreenCanvas(64, 64);
  const draw = canvas.getContext("2d");
  draw.font = "48px system-ui, sans-serif";
  draw.textAlign = "center";
  draw.textBaseline = "middle";
  draw.fillStyle = `#${color.toString(16)}`;
  draw.fillText(text, 32, 32);
  const sprite = new Sprite(new SpriteMaterial({ map: new CanvasTexture(canvas), depthTest: false }));
  sprite.scale.setScalar(0.7);
  return sprite;
}
