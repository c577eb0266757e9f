// The page's state, its controls, and the clock.

import { GRADIENT, readClip } from "./clip.js";
import { createPanel } from "./panel.js";
import { createScene } from "./scene.js";

const $ = (id) => document.getElementById(id);
const CHOICES = {
  views: ["orbit", "follow", "through"], colour: ["motion", "video"], show: ["all", "still", "moving"],
};

function start() {
  const clip = readClip(JSON.parse($("clip").textContent));
  const state = {
    frame: 0, view: "orbit", colour: "motion", show: "all", threshold: clip.threshold,
    trail: Math.min(12, clip.frames - 1), size: 0, ground: true,
  };
  const playback = { playing: true, speed: 1, loop: true, time: clip.times[0] };

  const image = document.createElement("canvas"); // the video's frame at `state.frame`
  const [height, width] = clip.image_size;
  const shrink = Math.min(1, 640 / Math.max(width, height));
  image.width = Math.ceil(shrink * width);
  image.height = Math.ceil(shrink * height);
  const draw = image.getContext("2d");
  draw.fillStyle = "#2a3442";
  const scene = createScene($("scene"), clip, image);
  const panel = createPanel(clip, $("video"), $("error"), image);

  document.title = clip.name;
  document.querySelector("h1").textContent = clip.name;
  $("summary").textContent = `${clip.frames} frames · ${clip.points} points · ` +
    `median reprojection error ${clip.median_error.toFixed(1)} px`;
  for (const [name, value] of Object.entries(clip.facts)) {
    for (const [tag, text] of [["dt", name], ["dd", value]]) {
      $("facts").append(Object.assign(document.createElement(tag), { textContent: text }));
    }
  }
  document.documentElement.style.setProperty("--gradient", GRADIENT);
  $("frame").max = $("trail").max = clip.frames - 1;
  document.querySelector('#colour [data-value="video"]').disabled = !clip.colors;

  let dirty = true;
  function change(values) {
    Object.assign(state, values);
    dirty = true;
  }

  function seek(frame) {
    playback.time = clip.times[Math.max(0, Math.min(clip.frames - 1, frame))];
  }

  function play(playing = !playback.playing) {
    playback.playing = playing;
    if (playing && state.frame === clip.frames - 1) seek(0);
    dirty = true;
  }

  function advance(seconds) {
    const [first, last] = [clip.times[0], clip.times.at(-1)];
    const pause = (last - first) / (clip.frames - 1); // the last frame is shown as long as others
    playback.time += seconds * playback.speed;
    if (playback.time < last + pause) return;
    playback.time = playback.loop ? first : last;
    if (!playback.loop) play(false);
  }

  function showControls() {
    for (const [id, value] of Object.entries({ views: state.view, colour: state.colour, show: state.show })) {
      for (const button of $(id).children) button.ariaPressed = button.dataset.value === value;
    }
    for (const id of ["frame", "threshold", "trail", "size"]) $(id).value = state[id];
    $("hint").hidden = state.view === "through";
    $("speed").value = playback.speed;
    $("play").ariaLabel = playback.playing ? "Pause" : "Play";
    $("loop").ariaPressed = playback.loop;
    $("time").textContent =
      `frame ${state.frame + 1} / ${clip.frames} · ${clip.times[state.frame].toFixed(2)} s`;
    const moving = clip.motion.filter((motion) => motion >= state.threshold).length;
    $("moving").textContent = `${moving} of ${clip.points} are moving`;
    $("trail-length").textContent = `${state.trail} ${state.trail === 1 ? "frame" : "frames"}`;
    $("point-size").textContent = `${(2 ** state.size).toFixed(1)} ×`;
  }

  let before;
  let decoded = -1; // the frame that `image` holds
  function tick(now) {
    if (playback.playing && before !== undefined) advance(Math.min(now - before, 250) / 1000);
    before = now;
    const frame = frameAt(clip.times, playback.time);
    if (frame !== state.frame) change({ frame });
    const pending = clip.images && decoded !== frame;
    if (!clip.images) draw.fillRect(0, 0, image.width, image.height);
    else if (pending && clip.images[frame].complete) {
      draw.drawImage(clip.images[frame], 0, 0, image.width, image.height);
      decoded = frame;
      dirty = true;
    }
    scene.render(state, dirty);
    if (dirty) {
      panel.render(state);
      showControls();
    }
    dirty = false;
    requestAnimationFrame(tick);
  }

  for (const [id, values] of Object.entries(CHOICES)) {
    const key = id === "views" ? "view" : id;
    $(id).addEventListener("click", ({ target }) => {
      if (target.dataset.value) change({ [key]: target.dataset.value });
    });
    CHOICES[id].next = () => change({ [key]: values[(values.indexOf(state[key]) + 1) % values.length] });
  }
  for (const id of ["threshold", "trail", "size"]) {
    $(id).addEventListener("input", () => change({ [id]: $(id).valueAsNumber }));
  }
  $("frame").addEventListener("input", () => {
    play(false);
    seek($("frame").valueAsNumber);
  });
  $("speed").addEventListener("change", () => (playback.speed = Number($("speed").value)));
  $("play").addEventListener("click", () => play());
  $("loop").addEventListener("click", () => toggleLoop());
  $("home").addEventListener("click", () => home());
  $("help").addEventListener("click", () => help());
  $("scene").addEventListener("dblclick", ({ offsetX, offsetY }) => {
    dirty ||= scene.pivot(offsetX, offsetY, state);
  });
  for (const kind of ["pointerdown", "pointermove"]) {
    $("error").addEventListener(kind, (event) => {
      if (!event.buttons) return;
      play(false);
      seek(panel.frameAt(event.offsetX));
    });
  }
  scene.controls.addEventListener("start", () => ($("hint").style.opacity = 0));
  addEventListener("resize", () => (dirty = true));
  addEventListener("keydown", (event) => {
    const action = KEYS[event.key.toLowerCase()];
    if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
    if ($("keys").open && event.key !== "?") return;
    if (event.target.matches("input, select") && event.key.startsWith("Arrow")) return;
    event.preventDefault();
    action();
  });

  function toggleLoop() {
    playback.loop = !playback.loop;
    dirty = true;
  }
  function home() {
    change({ view: "orbit" });
    scene.render(state); // back from other views first
    scene.home();
  }
  function help() {
    if ($("keys").open) $("keys").close();
    else $("keys").showModal();
  }
  function step(by) {
    play(false);
    seek(state.frame + by);
  }
  const KEYS = {
    " ": () => play(),
    arrowleft: () => step(-1),
    arrowright: () => step(1),
    home: () => seek(0),
    end: () => step(clip.frames),
    l: toggleLoop,
    c: () => clip.colors && CHOICES.colour.next(),
    s: CHOICES.show.next,
    v: CHOICES.views.next,
    r: home,
    g: () => change({ ground: !state.ground }),
    "?": help,
    t: () => change({ trail: state.trail ? 0 : Math.min(12, clip.frames - 1) }),
  };

  globalThis.fasttracks = { clip, state, playback, scene, panel, change, seek, play }; // for the console
  requestAnimationFrame(tick);
}

/** The last frame that begins at or before a time. */
function frameAt(times, time) {
  let low = 0;
  for (let high = times.length - 1; low < high; ) {
    const middle = (low + high + 1) >> 1;
    if (times[middle] <= time) low = middle;
    else high = middle - 1;
  }
  return low;
}

try {
  start();
} catch (error) {
  $("message").textContent = `This page can't show its clip: ${error.message}. It needs a browser with WebGL 2.`;
  $("message").hidden = false;
  throw error;
}
