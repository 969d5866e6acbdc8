// Numbers in words.

/** Bytes as the reports tell them: kB = 1000. */
export function bytes(count) {
  const units = ["bytes", "kB", "MB", "GB"];
  let unit = 0;
  while (count >= 999.5 && unit < units.length - 1) [count, unit] = [count / 1000, unit + 1];
  return `${unit ? significant(count) : count} ${units[unit]}`;
}

export function milliseconds(ms) {
  return `${significant(ms)} ms`;
}

export function times(ratio) {
  return `${ratio >= 10 ? ratio.toFixed(0) : ratio.toFixed(ratio >= 2 ? 1 : 2)}×`;
}

export function percent(share, digits = 1) {
  const told = (share * 100).toFixed(digits);
  return `${share === 1 ? "100" : told} %`;
}

/** A small share: 1.2 %, 0.03 %, < 0.01 %. */
export function error(share) {
  const points = share * 100;
  return points > 0 && points < 0.01 ? "< 0.01 %" : `${significant(points, 2)} %`;
}

/** Three figures, never an exponent. */
export function significant(value, figures = 3) {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  const whole = Math.floor(Math.log10(Math.abs(Number(value.toPrecision(figures))))) + 1;
  return value.toFixed(Math.max(0, Math.min(6, figures - whole)));
}

export function plural(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}
