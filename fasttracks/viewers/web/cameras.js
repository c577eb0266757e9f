// The cameras: their path, some of their frusta, and the current one with the video's frame.

import {
  BufferAttribute, BufferGeometry, CanvasTexture, DoubleSide, Group, Line, LineBasicMaterial,
  LineSegments, Mesh, MeshBasicMaterial, SRGBColorSpace, Vector3,
} from "three";

const MOST_FRUSTA = 16;

/** `poses` are Matrix4s, camera to world; `depth` is how far in front their images are drawn. */
export function createCameras(clip, poses, depth, image) {
  const group = new Group();
  const frusta = [];
  const extent = []; // their corners
  const stride = Math.ceil(clip.frames / MOST_FRUSTA);
  for (let t = 0; t < clip.frames; t += stride) {
    const corners = imageCorners(clip, t, 0.6 * depth).map((c) => c.applyMatrix4(poses[t]));
    const centre = new Vector3().setFromMatrixPosition(poses[t]);
    frusta.push(...edges(centre, corners));
    extent.push(centre, ...corners);
  }
  group.add(new LineSegments(lines(frusta), paint(0xffffff, 0.16)));
  const path = poses.map((pose) => new Vector3().setFromMatrixPosition(pose));
  group.add(new Line(lines(path), paint(0xffffff, 0.6)));

  const current = new Group();
  current.matrixAutoUpdate = false;
  const frame = new LineSegments(lines(edges(new Vector3(), imageCorners(clip, 0, depth))),
    paint(0xffffff, 1));
  const texture = new CanvasTexture(image);
  texture.colorSpace = SRGBColorSpace;
  texture.generateMipmaps = false;
  const plane = new Mesh(
    new BufferGeometry(),
    new MeshBasicMaterial({ map: texture, side: DoubleSide, depthWrite: false }),
  );
  plane.geometry.setAttribute("position", new BufferAttribute(new Float32Array(12), 3));
  plane.geometry.setAttribute("uv", new BufferAttribute(new Float32Array([0, 1, 1, 1, 1, 0, 0, 0]), 2));
  plane.geometry.setIndex([0, 1, 2, 0, 2, 3]);
  current.add(frame, plane);
  group.add(current);
  for (const object of [frame, plane]) object.frustumCulled = false;

  return {
    group,
    corners: extent,
    show(t, through) {
      for (const other of group.children) other.visible = other === current || !through;
      frame.visible = !through;
      plane.material.color.setScalar(through ? 0.3 : 1); // from its apex, it is a backdrop
      plane.material.depthTest = !through;
      plane.renderOrder = through ? -1 : 0;
      const corners = imageCorners(clip, t, depth);
      plane.geometry.setFromPoints(corners);
      frame.geometry.setFromPoints(edges(new Vector3(), corners));
      current.matrix.copy(poses[t]);
      current.matrixWorldNeedsUpdate = true;
      if (clip.images || !texture.version) texture.needsUpdate = true;
    },
  };
}

/** Top left, top right, bottom right, bottom left, at a depth in front of the camera. */
function imageCorners(clip, t, depth) {
  const [fx, skew, cx, fy, cy] = clip.intrinsics.subarray(5 * t, 5 * t + 5);
  const [height, width] = clip.image_size;
  const corners = [[0, 0], [width, 0], [width, height], [0, height]];
  return corners.map(([u, v]) => {
    const y = (v - 0.5 - cy) / fy; // pixels have whole numbers at their centres
    return new Vector3((u - 0.5 - cx - skew * y) / fx, y, 1).multiplyScalar(depth);
  });
}

function edges(apex, corners) {
  return corners.flatMap((corner, i) => [apex, corner, corner, corners[(i + 1) % 4]]);
}

function lines(points) {
  return new BufferGeometry().setFromPoints(points);
}

function paint(color, opacity) {
  return new LineBasicMaterial({ color, opacity, transparent: opacity < 1, depthWrite: false });
}
