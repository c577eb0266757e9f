// The panel beside the 3D view: the video with its tracks, and the error over time.

import { motionColor, quantile } from "./clip.js";

const ACCENT = "#6cb4ff";

export function createPanel(clip, videoCanvas, errorCanvas, image) {
  const [height, width] = clip.image_size;
  const motion = Array.from(clip.motion, (value) => `rgb(${motionColor(value).map(Math.round)})`);
  const video = Array.from({ length: clip.colors ? clip.points : 0 }, (_, n) =>
    `rgb(${clip.colors.subarray(3 * n, 3 * n + 3)})`);
  const errors = Array.from({ length: clip.frames }, (_, t) => {
    const values = clip.error.subarray(t * clip.points, (t + 1) * clip.points);
    return [quantile(values, 0.5) || 0, quantile(values, 0.9) || 0];
  });
  const radius = 1.9 * Math.min(devicePixelRatio, 2); // of a track's ring
  const ring = drawRing(radius);
  videoCanvas.style.setProperty("--aspect", width / height);

  function drawVideo(state) {
    const draw = sized(videoCanvas);
    const scale = Math.min(videoCanvas.width / width, videoCanvas.height / height);
    const colors = state.colour === "video" ? video : motion;
    draw.drawImage(image, 0, 0, width * scale, height * scale);
    draw.fillStyle = "#0006"; // tracks stand out against a darkened frame
    if (clip.images) draw.fillRect(0, 0, width * scale, height * scale);

    const marks = []; // of shown points: track, reprojection, colour
    for (let n = 0; n < clip.points; n++) {
      const i = state.frame * clip.points + n;
      const moving = clip.motion[n] >= state.threshold;
      const shown = state.show === "all" || moving === (state.show === "moving");
      if (!shown || Number.isNaN(clip.error[i])) continue;
      const place = (pixels, axis) => (pixels[2 * i + axis] + 0.5) * scale;
      marks.push([place(clip.tracks, 0), place(clip.tracks, 1),
        place(clip.reprojection, 0), place(clip.reprojection, 1), colors[n]]);
    }
    // Rectangles and copies of a picture, one kind after another, are far quicker than paths.
    for (const [x, y] of marks) draw.drawImage(ring, x - ring.width / 2, y - ring.height / 2);
    draw.fillStyle = "#fffb";
    for (const [x, y, u, v] of marks) {
      const thickness = (0.4 * radius) / Math.max(Math.hypot(u - x, v - y), 1e-3);
      draw.setTransform(u - x, v - y, (y - v) * thickness, (u - x) * thickness, x, y);
      draw.fillRect(0, -0.5, 1, 1);
    }
    draw.resetTransform();
    for (const [, , u, v, color] of marks) {
      draw.fillStyle = color;
      draw.fillRect(u - radius / 1.5, v - radius / 1.5, radius / 0.75, radius / 0.75);
    }
  }

  function drawError(state) {
    const draw = sized(errorCanvas);
    const { width: w, height: h } = errorCanvas;
    const unit = Math.min(devicePixelRatio, 2);
    const most = 1.1 * Math.max(...errors.map(([, high]) => high), 1e-6);
    const x = (t) => ((t + 0.5) / clip.frames) * w;
    const y = (value) => h * (1 - value / most);
    const curve = (which) => errors.forEach((e, t) => draw.lineTo(x(t), y(e[which])));

    draw.beginPath();
    draw.moveTo(x(0), h);
    curve(1);
    draw.lineTo(x(clip.frames - 1), h);
    draw.fillStyle = "#6cb4ff40";
    draw.fill();
    draw.beginPath();
    curve(0);
    draw.strokeStyle = ACCENT;
    draw.lineWidth = 1.5 * unit;
    draw.stroke();
    draw.fillStyle = "#fff";
    draw.fillRect(x(state.frame) - unit / 2, 0, unit, h);
    const [median, high] = errors[state.frame];
    draw.font = `${11 * unit}px system-ui, sans-serif`;
    draw.textAlign = x(state.frame) > w / 2 ? "right" : "left";
    const side = draw.textAlign === "right" ? -6 : 6;
    draw.fillText(`median ${median.toFixed(1)} px, 9 in 10 below ${high.toFixed(1)}`, x(state.frame) + side * unit, 13 * unit);
  }

  return {
    render(state) {
      drawVideo(state);
      drawError(state);
    },
    /** The frame under a place of the error's canvas. */
    frameAt: (x) => Math.floor((x / errorCanvas.clientWidth) * clip.frames),
  };
}

function drawRing(radius) {
  const side = 2 * Math.ceil(radius + 1);
  const canvas = new OffscreenCanvas(side, side);
  const draw = canvas.getContext("2d");
  draw.arc(side / 2, side / 2, radius, 0, 7);
  draw.strokeStyle = "#fffb";
  draw.lineWidth = 0.35 * radius;
  draw.stroke();
  return canvas.transferToImageBitmap();
}

/** A canvas's context, its pixels those of the screen and blank. */
function sized(canvas) {
  const ratio = Math.min(devicePixelRatio, 2);
  const [width, height] = [canvas.clientWidth, canvas.clientHeight].map((side) => Math.round(ratio * side));
  const draw = canvas.getContext("2d");
  if (canvas.width === width && canvas.height === height) draw.clearRect(0, 0, width, height);
  else Object.assign(canvas, { width, height });
  return draw;
}
