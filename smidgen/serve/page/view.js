// What the page shows; nothing here computes.

import { imageShape, pixelsOf } from "./preprocess.js";
import { ranked } from "./measure.js";
import { bytes, error, milliseconds, percent, plural, significant, times } from "./words.js";

const SHOWN = 3; // classes a network is shown with

export const part = (id) => document.getElementById(id);

/** An element with text or children; never markup from text. */
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

export function state(name) {
  document.documentElement.dataset.state = name;
}

/** What the page is doing; null when it is done. */
export function doing(text) {
  part("status").hidden = text === null;
  if (text !== null) part("doing").textContent = text;
}

export function failed(message) {
  doing(null);
  const box = part("alert");
  box.hidden = false;
  box.textContent = message;
  state("failed");
}

export function cleared() {
  part("alert").hidden = true;
}

/** The headline and the choice among smaller networks. */
export function named(bench, chosen, choose) {
  document.title = `${bench.name} · smidgen`;
  part("name").textContent = bench.name;
  const select = part("written");
  select.replaceChildren(...bench.written.map((each, i) => element("option", { value: String(i) }, each.target)));
  select.value = String(chosen);
  select.hidden = bench.written.length < 2;
  part("written-name").hidden = !select.hidden;
  select.onchange = () => choose(Number(select.value));
}

export function figures(original, written, result, speed) {
  part("figures").hidden = false;
  const ratio = original.nbytes / written.nbytes;
  figure("smaller", times(Math.max(ratio, 1 / ratio)), ratio >= 1 ? "smaller" : "larger", ratio >= 1);
  if (speed) figure("faster", times(speed.speedup.median), "as fast", surely(speed.speedup));
  else figure("faster", "…", "as fast");
  if (!result) figure("agree", "…", "agreement");
  else if (result.agreeing === null) figure("agree", error(result.error), "apart");
  else figure("agree", `${result.agreeing}/${result.count}`, "agree", result.agreeing === result.count);
}

/** Whether it is faster in three rounds of four, or slower in three of four; undefined in between. */
function surely({ low, high }) {
  return low >= 1 ? true : high < 1 ? false : undefined;
}

function figure(id, text, note, good) {
  part(id).textContent = text;
  part(`${id}-note`).textContent = note;
  part(id).parentElement.classList.toggle("good", good === true);
  part(id).parentElement.classList.toggle("warn", good === false);
}

/** The table: bytes, time, runtime, and what the report says. */
export function table(bench, written, result, speed, threads) {
  part("compare").hidden = false;
  const both = [bench.original, written];
  const rows = [
    row("File", both.map((each) => [each.file])),
    row("Download", measured(both.map((each) => each.nbytes), bytes)),
    row("Time for one", speed ? measured(speed.times.map((each) => each.median), milliseconds) : [["…"], ["…"]]),
  ];
  if (result?.right[0] !== null && result) {
    rows.push(row("Right answers", result.right.map((right) => [`${right} of ${result.count}`])));
  }
  if (both.some((each) => each.accuracy !== null)) {
    rows.push(row("Reported accuracy", both.map((each) => [each.accuracy === null ? "–" : percent(each.accuracy, 2)])));
  }
  rows.push(row("Runtime", both.map((each, i) => [`${bench.runtimes[each.runtime].name}, ${plural(threads[i], "thread")}`])));
  part("rows").replaceChildren(...rows);
}

/** Numbers with bars, the larger one full. */
function measured(values, told) {
  const most = Math.max(...values) || 1;
  return values.map((value) => [told(value), value / most]);
}

function row(name, cells) {
  const made = cells.map(([text, share], i) => {
    const cell = element("td", { className: i ? "written" : "original" }, element("span", {}, text));
    if (share !== undefined) cell.append(bar(share));
    return cell;
  });
  return element("tr", {}, element("th", { scope: "row" }, name), ...made);
}

function bar(share) {
  const made = element("span", { className: "bar" }, element("span"));
  made.setAttribute("aria-hidden", "true"); // the number stands beside it
  made.firstChild.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return made;
}

/** All samples as buttons, marked where the answers differ. */
export function samples(bench, inputs, answers, select) {
  const box = part("samples");
  box.hidden = false;
  const { source } = bench.samples;
  part("samples-note").textContent = source === null ? "random noise, for no data were given" : `from ${source}`;
  const tiles = inputs.map((x, i) => {
    const [a, b] = answers.map((each) => (each[i] ? ranked(each[i]) : null));
    const differ = a && b && a[0].index !== b[0].index;
    const label = bench.samples.labels?.[i];
    const told = a && b ? caption(bench, a[0].index, b[0].index) : `#${i + 1}`;
    const tile = element("button", { type: "button", className: differ ? "tile differ" : "tile" });
    tile.append(picture(x, bench) ?? element("span", { className: "blank" }, `#${i + 1}`), element("span", { className: "caption" }, told));
    const truth = label === undefined || label === null ? "" : `, labelled ${classOf(bench, label)}`;
    tile.setAttribute("aria-label", `Sample ${i + 1}${truth}: ${differ ? "answers differ" : "answers"} ${told}`);
    tile.onclick = () => select(i);
    return tile;
  });
  part("grid").replaceChildren(...tiles);
}

export function marked(index) {
  [...part("grid").children].forEach((tile, i) => tile.setAttribute("aria-pressed", String(i === index)));
}

function caption(bench, a, b) {
  return a === b ? classOf(bench, a) : `${classOf(bench, a)} → ${classOf(bench, b)}`;
}

export function classOf(bench, index) {
  return bench.classes[index] ?? String(index);
}

function picture(x, bench) {
  const image = pixelsOf(x, bench.samples.shape, bench.preprocess);
  if (!image) return null;
  const canvas = element("canvas", { width: image.width, height: image.height });
  canvas.setAttribute("aria-hidden", "true");
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** One input and both answers to it. */
export function viewer(bench, title, x, [original, written], took = null) {
  part("viewer").hidden = false;
  part("viewer-title").textContent = title;
  const shown = imageShape(bench.samples.shape, bench.preprocess?.layout) ? pixelsOf(x, bench.samples.shape, bench.preprocess) : null;
  const canvas = part("picture");
  canvas.parentElement.hidden = !shown;
  if (shown) {
    [canvas.width, canvas.height] = [shown.width, shown.height];
    canvas.classList.toggle("coarse", shown.width < 96);
    canvas.getContext("2d").putImageData(shown, 0, 0);
  }
  const [a, b] = [ranked(original), ranked(written)];
  answer("answer-original", bench, a, original, took?.[0]);
  answer("answer-written", bench, b, written, took?.[1]);
  const verdict = part("verdict");
  const agree = a && b ? a[0].index === b[0].index : null;
  verdict.textContent = agree === null ? `${error(apart(original, written))} apart` : agree ? "same answer" : "answers differ";
  verdict.className = agree === null ? "verdict" : agree ? "verdict good" : "verdict warn";
}

function answer(id, bench, ranks, outputs, ms) {
  const lines = ranks
    ? ranks.slice(0, SHOWN).map(({ index, share }) =>
        element("li", {}, element("span", { className: "class" }, classOf(bench, index)),
          element("span", { className: "share" }, percent(share)), bar(share)))
    : outputs.map((values) => element("li", {}, element("span", { className: "values" }, shortened(values))));
  if (ms !== null && ms !== undefined) lines.push(element("li", { className: "took" }, milliseconds(ms)));
  part(id).replaceChildren(...lines);
}

function shortened(values) {
  const few = Array.from(values.slice(0, 4), (value) => significant(Number(value)));
  return few.join(", ") + (values.length > few.length ? `, … (${values.length})` : "");
}

function apart(original, written) {
  let [gap, energy] = [0, 0];
  original.forEach((values, place) => values.forEach((value, i) => {
    gap += (Number(value) - Number(written[place][i])) ** 2;
    energy += Number(value) ** 2;
  }));
  return Math.sqrt(gap / (energy || 1));
}

/** How it was measured: names and texts. */
export function how(pairs) {
  part("how").replaceChildren(...pairs.flatMap(([name, text]) =>
    [element("dt", {}, name), element("dd", {}, text instanceof Node ? text : String(text))]));
}

/** A choice of threads, which takes a reload: a runtime is started once. */
export function threadChoice(most, chosen, choose) {
  const counts = Array.from({ length: Math.min(most, 8) }, (_, i) => i + 1);
  const select = element("select", {}, ...counts.map((count) => element("option", { value: String(count) }, String(count))));
  select.setAttribute("aria-label", "Threads");
  select.value = String(chosen);
  select.onchange = () => choose(Number(select.value));
  return select;
}

export function note(text) {
  const box = part("own-note");
  box.hidden = !text;
  box.textContent = text ?? "";
}
