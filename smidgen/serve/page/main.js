// From loading to measuring; the order in which a phone's user sees it.

import { Camera, pixelsFrom } from "./camera.js";
import { compared, latencies } from "./measure.js";
import { imageShape, prepare } from "./preprocess.js";
import { download, hindrance, mostThreads, startRuntime } from "./runtimes.js";
import * as view from "./view.js";
import { bytes, significant } from "./words.js";

const query = new URLSearchParams(location.search);
const bench = JSON.parse(new TextDecoder().decode(await attempt(() => download("bench.json"))));
const inputs = [];
const threads = Math.min(Number(query.get("threads")) || Math.ceil(mostThreads() / 2), mostThreads(), 4);
let open = []; // the original and the smaller network: { run, close, threads }
let answers = [[], []];
let result = null;
let speed = null;
let chosen = Math.max(0, bench.written.findIndex((each) => each.target === query.get("target")));
let busy = false;

/** What fails is said in a sentence, and nothing goes on. */
async function attempt(work) {
  try {
    return await work();
  } catch (error) {
    view.failed(error instanceof Error ? error.message : String(error));
    await new Promise(() => {});
  }
}

const told = (what) => (loaded, total) =>
  view.doing(`Loading ${what}${total ? `: ${bytes(loaded)} of ${bytes(total)}` : ""} …`);

async function openNetwork(entry, word) {
  const { url, name } = bench.runtimes[entry.runtime];
  const runtime = await startRuntime(entry.runtime, url, threads, told(name));
  const content = await download(entry.url, told(`the ${word} network`)).catch((error) => {
    throw new Error(error.message.replace(entry.url.split("/").pop(), entry.file));
  });
  view.doing(`Opening ${entry.file} …`);
  try {
    return { ...(await runtime.open(content)), threads: runtime.threads };
  } catch (error) {
    throw new Error(`${name} cannot open ${entry.file}: ${String(error?.message ?? error).slice(0, 300)}`);
  }
}

async function loadSamples() {
  const { url, count, shape } = bench.samples;
  const content = await download(url, told("the samples"));
  const size = shape.reduce((a, b) => a * b, 1);
  const all = new Float32Array(content.buffer, 0, count * size);
  for (let i = 0; i < count; i++) inputs.push(all.subarray(i * size, (i + 1) * size));
}

const run = (which, x) => open[which].run(x, bench.samples.shape);
let asked = Promise.resolve(); // the last picture's answers: one at a time, and none while networks change

async function answerAll(which, word) {
  const { file } = which ? bench.written[chosen] : bench.original;
  const found = [];
  for (const [i, x] of inputs.entries()) {
    view.doing(`Asking the ${word} network: ${i + 1} of ${inputs.length} …`);
    try {
      found.push(await run(which, x));
    } catch (error) {
      throw new Error(`${file} does not run here: ${String(error?.message ?? error).slice(0, 300)}`);
    }
    if (i % 4 === 3) await new Promise((resume) => setTimeout(resume));
  }
  return found;
}

async function measure() {
  speed = null;
  show();
  view.doing("Measuring, in turns …");
  speed = await latencies([0, 1].map((which) => () => run(which, inputs[0])),
    (share) => view.doing(`Measuring, in turns: ${Math.round(share * 100)} % …`));
  show();
}

function show() {
  const written = bench.written[chosen];
  view.figures(bench.original, written, result, speed);
  view.table(bench, written, result, speed, open.map((network) => network.threads));
  view.how(circumstances());
}

function circumstances() {
  const choice = view.threadChoice(mostThreads(), threads, (count) => {
    query.set("threads", String(count));
    query.set("target", bench.written[chosen].target);
    location.search = query.toString();
  });
  const told = speed
    ? `median of ${speed.rounds} rounds of both in turns after a warm-up; quartiles ${speed.times.map((time) => between(time)).join(" and ")} ms; as fast: the median of the rounds' ratios, quartiles ${between(speed.speedup)}`
    : "…";
  const { preprocess } = bench;
  const steps = preprocess
    ? Object.entries(preprocess).filter(([, value]) => value !== null && value !== false && String(value) !== "").map(([name, value]) => `${name} ${value}`).join(", ")
    : "none declared";
  return [
    ["Time", told],
    ["Threads", globalThis.crossOriginIsolated ? choice : "1: the page is not isolated from other origins"],
    ["Outputs", result ? `${(result.error * 100).toPrecision(2)} % apart, at most ${result.largest.toPrecision(2)}` : "…"],
    ["Preprocessing", steps],
    ["Processors", navigator.hardwareConcurrency ?? "not told"],
    ["Browser", navigator.userAgent],
  ];
}

function between({ low, high }) {
  return `${significant(low)}–${significant(high)}`;
}

function record() {
  const { original, written, samples } = bench;
  const entry = (each, which) => ({
    file: each.file, target: each.target, nbytes: each.nbytes, runtime: bench.runtimes[each.runtime].name,
    threads: open[which].threads, latency_ms: speed?.times[which].median ?? null,
    latency_quartiles_ms: speed ? [speed.times[which].low, speed.times[which].high] : null, right: result.right[which],
  });
  return {
    schema_version: 1, name: bench.name, browser: navigator.userAgent, isolated: globalThis.crossOriginIsolated,
    samples: { count: samples.count, source: samples.source }, agreeing: result.agreeing, output_error: result.error,
    largest_difference: result.largest, speedup: speed?.speedup.median ?? null,
    speedup_quartiles: speed ? [speed.speedup.low, speed.speedup.high] : null,
    original: entry(original, 0), written: entry(written[chosen], 1),
  };
}

async function exclusively(work) {
  if (busy) return;
  busy = true;
  camera.stop();
  await asked.catch(() => {});
  view.cleared();
  offer();
  view.state("loading");
  try {
    await work();
    view.doing(null);
    view.state("ready");
  } catch (error) {
    view.failed(error instanceof Error ? error.message : String(error));
  } finally {
    busy = false;
    offer();
  }
}

async function openWritten(index) {
  chosen = index;
  await open[1]?.close();
  open[1] = await openNetwork(bench.written[index], "smaller");
  answers[1] = await answerAll(1, "smaller");
  result = compared(answers[0], answers[1], bench.samples.labels);
  view.samples(bench, inputs, answers, pick);
  pick(answers[1].findIndex((_, i) => differs(i)) >= 0 ? answers[1].findIndex((_, i) => differs(i)) : 0);
  await measure();
}

function differs(i) {
  return result.agreeing !== null && compared([answers[0][i]], [answers[1][i]], null).agreeing === 0;
}

function pick(i) {
  camera.stop();
  const label = bench.samples.labels?.[i];
  const title = label === undefined || label === null ? `Sample ${i + 1}` : `Sample ${i + 1}, labelled ${view.classOf(bench, label)}`;
  view.viewer(bench, title, inputs[i], [answers[0][i], answers[1][i]]);
  view.marked(i);
}

/** A picture of the user's own, from a file or the camera. */
function ask(title, picture) {
  asked = asked.catch(() => {}).then(() => answerPicture(title, picture));
  return asked;
}

async function answerPicture(title, picture) {
  if (busy) return;
  if (view.part("invert").checked) inverted(picture);
  const { x, adapted } = prepare(picture, bench.preprocess, bench.samples.shape);
  const found = [];
  const took = [];
  for (const which of [0, 1]) {
    const start = performance.now();
    found.push(await run(which, x));
    took.push(performance.now() - start);
  }
  view.viewer(bench, title, x, found, took);
  view.marked(-1);
  const { height, width } = imageShape(bench.samples.shape, bench.preprocess.layout);
  view.note(adapted ? `The middle of the picture, at ${width} × ${height}: no other resizing was declared.` : null);
}

const camera = new Camera(view.part("video"), {
  frame: (picture) => ask("Camera", picture),
  failed: (message) => view.note(message),
  changed: (on) => {
    view.part("camera").setAttribute("aria-pressed", String(on));
    view.part("camera").textContent = on ? "Stop camera" : "Camera";
    if (!on) view.note(null);
  },
});

/** Pictures can be chosen where it is known how they become inputs, and while nothing else runs. */
function offer() {
  const possible = bench.preprocess && imageShape(bench.samples.shape, bench.preprocess.layout);
  for (const id of ["choose", "camera", "again", "written"]) view.part(id).disabled = busy || (!possible && id in { choose: 0, camera: 0 });
  view.part("choose-label").classList.toggle("disabled", busy || !possible);
  view.part("invert-label").hidden = possible?.channels !== 1;
  if (possible) return;
  const image = imageShape(bench.samples.shape) ?? imageShape(bench.samples.shape, "nhwc");
  view.note(image ? "How a picture becomes an input was not declared (--scale, --mean, --std), so only samples are shown." : null);
  for (const id of ["choose-label", "camera"]) view.part(id).hidden = !image;
}

/** Dark ink on paper for a network that knows light strokes on black. */
function inverted({ data }) {
  for (let i = 0; i < data.length; i++) if (i % 4 < 3) data[i] = 255 - data[i];
}

function listen() {
  view.part("choose").onchange = async ({ target }) => {
    const [file] = target.files;
    target.value = "";
    camera.stop();
    if (!file) return;
    try {
      await ask(file.name, await pixelsFrom(file));
    } catch (error) {
      view.note(`${file.name} cannot be read as a picture: ${error.message}`);
    }
  };
  view.part("camera").onclick = () => camera.toggle();
  view.part("again").onclick = () => exclusively(measure);
  view.part("save").onclick = save;
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(record(), null, 1)], { type: "application/json" }));
  link.download = `${bench.name}-bench.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

view.named(bench, chosen, (index) => exclusively(() => openWritten(index)));
listen();
// For who drives the page from outside, as its test does.
globalThis.smidgen = { bench, record, answers: () => answers };

const reason = hindrance();
if (reason) view.failed(reason);
else {
  await exclusively(async () => {
    await loadSamples();
    open[0] = await openNetwork(bench.original, "original");
    answers[0] = await answerAll(0, "original");
    await openWritten(chosen);
  });
}
