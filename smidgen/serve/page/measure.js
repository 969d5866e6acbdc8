// What is told of two networks: their answers, how far these agree, and how long they take.

/** The classes of an answer by falling probability; null where it is none of classes. */
export function ranked(outputs) {
  if (outputs.length !== 1 || outputs[0].length < 2) return null;
  const shares = probabilities(Array.from(outputs[0], Number));
  return shares.map((share, index) => ({ index, share })).sort((a, b) => b.share - a.share || a.index - b.index);
}

/** Softmax, unless the numbers are probabilities already. */
export function probabilities(values) {
  const sum = values.reduce((a, b) => a + b, 0);
  if (values.every((value) => value >= 0) && Math.abs(sum - 1) < 1e-3) return values;
  const most = Math.max(...values);
  const powers = values.map((value) => Math.exp(value - most));
  const whole = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / whole);
}

/** Over all samples: the share of equal first classes, of right ones where there are labels, and the relative error. */
export function compared(originals, writtens, labels) {
  const firsts = (answers) => answers.map((outputs) => ranked(outputs)?.[0].index ?? null);
  const [a, b] = [firsts(originals), firsts(writtens)];
  const classes = a.every((first) => first !== null);
  const right = (found) => (labels && classes ? found.filter((first, i) => first === labels[i]).length : null);
  return {
    count: a.length,
    agreeing: classes ? a.filter((first, i) => first === b[i]).length : null,
    right: [right(a), right(b)],
    ...difference(originals, writtens),
  };
}

/** ‖written − original‖ / ‖original‖ over all samples and outputs, and the largest single difference. */
function difference(originals, writtens) {
  let [error, energy, largest] = [0, 0, 0];
  originals.forEach((outputs, sample) => outputs.forEach((output, place) => output.forEach((value, i) => {
    const apart = Number(writtens[sample][place][i]) - Number(value);
    error += apart * apart;
    energy += Number(value) ** 2;
    largest = Math.max(largest, Math.abs(apart));
  })));
  return { error: Math.sqrt(error / (energy || 1)), largest };
}

const WARM_UP = 3;
const ROUNDS = 15;
const LEAST_MS = 600;
const MOST_MS = 6000;

/**
 * Time of one call of each, in turns: whatever slows the device slows both. A round times a bunch of calls of each, long
 * enough for the browser's clock, and every second round begins with the other.
 */
export async function latencies(calls, progress = () => {}) {
  const clock = globalThis.crossOriginIsolated ? 5 : 20; // milliseconds a bunch takes at least
  const bunches = [];
  for (const call of calls) {
    for (let i = 0; i < WARM_UP; i++) await call();
    let [bunch, took] = [1, await timed(call, 1)];
    while (took < clock) {
      bunch = Math.ceil(bunch * Math.min(8, Math.max(1.5, (1.2 * clock) / Math.max(took, 0.01))));
      took = await timed(call, bunch);
    }
    bunches.push(bunch);
  }
  const rounds = [];
  const start = performance.now();
  for (let spent = 0; spent < MOST_MS && (rounds.length < ROUNDS || spent < LEAST_MS); spent = performance.now() - start) {
    const order = rounds.length % 2 ? [1, 0] : [0, 1];
    const round = [0, 0];
    for (const which of order) {
      await calls[which](); // whoever is first would pay for the pause, whoever is second for the other's weights
      round[which] = (await timed(calls[which], bunches[which])) / bunches[which];
    }
    rounds.push(round);
    progress(Math.min(1, Math.max((performance.now() - start) / MOST_MS, Math.min(rounds.length / ROUNDS, (performance.now() - start) / LEAST_MS))));
    await new Promise((resume) => setTimeout(resume)); // the page breathes
  }
  const of = (which) => spread(rounds.map((round) => round[which]));
  return { times: [of(0), of(1)], speedup: spread(rounds.map(([a, b]) => a / b)), rounds: rounds.length };
}

async function timed(call, count) {
  const start = performance.now();
  for (let i = 0; i < count; i++) await call();
  return performance.now() - start;
}

function spread(values) {
  return { median: quantile(values, 0.5), low: quantile(values, 0.25), high: quantile(values, 0.75) };
}

export function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b);
  const place = share * (sorted.length - 1);
  const below = Math.floor(place);
  return sorted[below] + (place - below) * ((sorted[below + 1] ?? sorted[below]) - sorted[below]);
}
