// The browser's runtimes behind one face: a network opened from its bytes has `run(x, shape)`, which gives an array of
// plain number arrays, one an output, for one sample.

/** The smallest module with a SIMD instruction: () → v128, i8x16.splat of 0. */
const SIMD = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11,
]);

/** Why networks cannot run in this browser, in a sentence; null where they can. */
export function hindrance() {
  if (typeof WebAssembly !== "object") return "This browser has no WebAssembly, which both runtimes need.";
  if (!WebAssembly.validate(SIMD)) {
    return "This browser has no WebAssembly SIMD, which both runtimes need. A newer one has it: Chrome 91, Firefox 89, Safari 16.4.";
  }
  return null;
}

/** Threads that a runtime may have: one unless the page is isolated from other origins. */
export function mostThreads() {
  return globalThis.crossOriginIsolated ? Math.max(1, navigator.hardwareConcurrency || 1) : 1;
}

/** Bytes behind an address, with progress(loaded, total). */
export async function download(url, progress = () => {}) {
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Error(`${nameOf(url)} could not be loaded: the server does not answer. Is smidgen serve still running?`);
  }
  if (!response.ok) throw new Error(`${nameOf(url)} could not be loaded (${response.status}). Was it removed from the folder?`);
  const total = Number(response.headers.get("content-length")) || 0;
  const reader = response.body.getReader();
  const parts = [];
  let loaded = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    parts.push(part.value);
    loaded += part.value.length;
    progress(loaded, total);
  }
  const bytes = new Uint8Array(loaded);
  parts.reduce((at, part) => (bytes.set(part, at), at + part.length), 0);
  return bytes;
}

function nameOf(url) {
  return String(url).split("/").pop();
}

const STARTERS = { onnxruntime: startOnnxRuntime, litert: startLiteRt };
const started = new Map();

/** A runtime, started once: `open(bytes)` opens a network, `threads` is what it got. */
export function startRuntime(kind, where, threads, progress) {
  if (!started.has(kind)) started.set(kind, STARTERS[kind](new URL(where, document.baseURI).href, threads, progress));
  return started.get(kind);
}

async function startOnnxRuntime(base, threads, progress) {
  const ort = await import(`${base}ort.mjs`);
  const wasm = `${base}ort-wasm-simd-threaded.wasm`;
  ort.env.logLevel = "error";
  ort.env.wasm.numThreads = threads;
  ort.env.wasm.wasmPaths = { mjs: `${base}ort-wasm-simd-threaded.mjs`, wasm };
  ort.env.wasm.wasmBinary = (await download(wasm, progress)).buffer;
  return { threads, open: (bytes) => openOnnx(ort, bytes) };
}

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, uint8: Uint8Array, int16: Int16Array,
  uint16: Uint16Array, int32: Int32Array,
};

async function openOnnx(ort, bytes) {
  // Weights stored as integers for a network that computes in floats are unpacked once, not at every call.
  const extra = weightOnly(bytes) ? { session: { disable_quant_qdq: "1" } } : {};
  const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"], logSeverityLevel: 3, extra });
  const input = session.inputMetadata[0];
  const kind = ARRAYS[input.type];
  if (session.inputNames.length !== 1 || !kind) throw new Error(`its input is ${input.type}, which this page cannot give`);
  const sides = input.shape.slice(1).map((side) => (typeof side === "number" && side > 0 ? side : null));
  return {
    async run(x, shape) {
      const [fed, given] = arranged(x, shape, sides);
      const tensor = new ort.Tensor(input.type, kind === Float32Array ? fed : kind.from(fed), [1, ...given]);
      const answer = await session.run({ [session.inputNames[0]]: tensor });
      return session.outputNames.map((name) => plain(answer[name].data));
    },
    close: () => session.release(),
  };
}

/** Whether operators' names tell that a file unpacks integers and never makes any. */
function weightOnly(bytes) {
  const text = new TextDecoder("latin1").decode(bytes);
  return text.includes("DequantizeLinear") && !text.includes("QuantizeLinear");
}

function plain(data) {
  return data instanceof BigInt64Array || data instanceof BigUint64Array ? Float64Array.from(data, Number) : data.slice();
}

async function startLiteRt(base, threads, progress) {
  const lite = await import(`${base}litert.js`);
  progress(0, 0);
  // Its own news is none for a user; what else it says stays.
  const printErr = (line) => /^(INFO|WARNING|VERBOSE)/.test(line) || console.error(line);
  globalThis.Module = { printErr };
  let got = threads;
  try {
    await lite.loadLiteRt(`${base}wasm/`, { threads: threads > 1 });
  } catch (error) {
    if (threads === 1) throw error;
    globalThis.Module = { printErr };
    await lite.loadLiteRt(`${base}wasm/`); // no relaxed SIMD, so no threads
    got = 1;
  }
  return { threads: got, open: (bytes) => openLiteRt(lite, bytes, got) };
}

async function openLiteRt(lite, bytes, threads) {
  const cpuOptions = { numThreads: threads };
  const model = await lite.loadAndCompile(bytes, { accelerator: "wasm", ...(threads > 1 ? { cpuOptions } : {}) });
  const inputs = model.getInputDetails();
  if (inputs.length !== 1 || inputs[0].dtype !== "float32") {
    throw new Error(`its input is ${inputs.map((each) => each.dtype).join(", ")}; LiteRT.js needs one of float32`);
  }
  const sides = Array.from(inputs[0].shape).slice(1);
  return {
    async run(x, shape) {
      const [fed, given] = arranged(x, shape, sides);
      const tensor = new lite.Tensor(fed, [1, ...given]);
      const answers = await model.run(tensor);
      const arrays = answers.map((answer) => plain(answer.toTypedArray()));
      for (const each of [tensor, ...answers]) each.delete();
      return arrays;
    },
    close: () => model.delete(),
  };
}

/** A sample in the order of axes that a network wants: channels first, or last. */
export function arranged(x, shape, wanted) {
  const fits = (sides) => sides.length === wanted.length && sides.every((side, i) => wanted[i] === null || wanted[i] === side);
  if (fits(shape)) return [x, shape];
  const [a, b, c] = shape;
  if (shape.length === 3 && fits([b, c, a])) return [moved(x, a, b * c), [b, c, a]];
  if (shape.length === 3 && fits([c, a, b])) return [moved(x, a * b, c), [c, a, b]];
  throw new Error(`it takes ${wanted.map((side) => side ?? "any").join("×")}, the samples are ${shape.join("×")}`);
}

function moved(x, rows, columns) {
  const result = new Float32Array(x.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) result[column * rows + row] = x[row * columns + column];
  }
  return result;
}
