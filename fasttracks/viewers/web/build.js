// Bundles the page's parts and three.js into one file, ../page.html, with the clip left out.
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const SOURCES = [
  "page.html", "page.css", "cameras.js", "clip.js", "cloud.js", "ground.js", "main.js", "panel.js",
  "scene.js",
];
const read = (name) => readFileSync(new URL(name, import.meta.url), "utf8");

const bundle = await build({
  entryPoints: ["main.js"],
  bundle: true,
  minify: true,
  format: "iife",
  legalComments: "none", // three's whole licence is in the page
  write: false,
});
const parts = {
  digest: createHash("sha256").update(SOURCES.map(read).join("")).digest("hex"),
  licence: read("node_modules/three/LICENSE").trim(),
  style: read("page.css"),
  script: bundle.outputFiles[0].text,
};
const page = read("page.html").replace(/{{(digest|licence|style|script)}}/g, (_, part) => parts[part]);
writeFileSync(new URL("../page.html", import.meta.url), page);
console.log(`page.html: ${(page.length / 1e6).toFixed(2)} MB`);
