// The clip that the page holds, unpacked. Flat arrays, frame by frame; cameras as in OpenCV.

export function readClip(packed) {
  const { frames, points } = packed;
  const basis = floats(packed.basis);
  const positions = compose(
    floats(packed.coefficients), basis, frames, packed.bases, 3 * points);
  const cameras = floats(packed.cameras); // (frames, 3, 4) camera to world
  const intrinsics = floats(packed.intrinsics); // (frames, 5) fx, skew, cx, fy, cy
  const tracks = unpackTracks(packed.tracks, packed.track_step);
  const reprojection = project(positions, cameras, intrinsics, frames, points);
  const error = new Float32Array(frames * points); // NaN where unseen, as tracks are
  for (let i = 0; i < error.length; i++) {
    error[i] = Math.hypot(tracks[2 * i] - reprojection[2 * i],
      tracks[2 * i + 1] - reprojection[2 * i + 1]);
  }
  return {
    ...packed, positions, cameras, intrinsics, tracks, reprojection, error,
    staticPositions: basis.subarray(0, 3 * points),
    motion: bytes(packed.motion), // 0 still .. 255 moving
    colors: packed.colors && bytes(packed.colors),
    images: packed.images?.map((jpeg) => {
      const image = new Image();
      image.src = `data:image/jpeg;base64,${jpeg}`;
      return image;
    }),
  };
}

function bytes(base64) {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

function floats(base64) {
  return new Float32Array(bytes(base64).buffer);
}

/** Positions, coefficients (frames, bases) times basis (bases, width). */
function compose(coefficients, basis, frames, bases, width) {
  const positions = new Float32Array(frames * width);
  for (let t = 0; t < frames; t++) {
    for (let k = 0; k < bases; k++) {
      const weight = coefficients[t * bases + k];
      if (weight === 0) continue; // most are, in a long clip
      for (let i = 0; i < width; i++) positions[t * width + i] += weight * basis[k * width + i];
    }
  }
  return positions;
}

/** Pixels from whole steps; the least number says that a point was not seen. */
function unpackTracks(base64, step) {
  const steps = new Int16Array(bytes(base64).buffer);
  return Float32Array.from(steps, (value) => (value === -32768 ? NaN : value * step));
}

function project(positions, cameras, intrinsics, frames, points) {
  const pixels = new Float32Array(frames * points * 2);
  for (let t = 0; t < frames; t++) {
    const m = cameras.subarray(12 * t);
    const [fx, skew, cx, fy, cy] = intrinsics.subarray(5 * t);
    for (let i = t * points; i < (t + 1) * points; i++) {
      const x = positions[3 * i] - m[3];
      const y = positions[3 * i + 1] - m[7];
      const z = positions[3 * i + 2] - m[11];
      const depth = Math.max(m[2] * x + m[6] * y + m[10] * z, 0.01);
      const u = (m[0] * x + m[4] * y + m[8] * z) / depth;
      const v = (m[1] * x + m[5] * y + m[9] * z) / depth;
      pixels[2 * i] = fx * u + skew * v + cx;
      pixels[2 * i + 1] = fy * v + cy;
    }
  }
  return pixels;
}

/** The value that a share of the finite ones lie below. */
export function quantile(values, share) {
  const sorted = values.filter(Number.isFinite).sort();
  return sorted.length ? sorted[Math.round(share * (sorted.length - 1))] : NaN;
}

const STOPS = [[98, 136, 190], [92, 200, 180], [250, 214, 80], [250, 128, 50], [240, 60, 70]];

export const GRADIENT = STOPS.map((rgb) => `rgb(${rgb})`).join(", ");

/** The colour [r, g, b] of a motion 0..255. */
export function motionColor(motion) {
  const place = (motion / 255) * (STOPS.length - 1);
  const i = Math.min(Math.floor(place), STOPS.length - 2);
  return STOPS[i].map((value, c) => value + (place - i) * (STOPS[i + 1][c] - value));
}
