// From a picture to what a network takes, as smidgen/data/preprocess.py does it, to the bit (or, where Pillow resizes a
// tall picture rows first, to one level of its 256):
//
//     x = (pixel · scale − mean) / std
//
// Order: colours → crop (only if crop_first) → resize → crop → arithmetic → layout.

// ITU-R 601-2 luma in 16-bit fixed point.
const LUMA = [19595, 38470, 7471];
// Resizing is bilinear with antialiasing, its weights rounded to this many bits, as in Pillow.
const BITS = 22;

/** Whether a sample of this shape is an image: channels first or last, one or three of them. */
export function imageShape(shape, layout = "nchw") {
  if (shape.length !== 3) return null;
  const [height, width, channels] = layout === "nhwc" ? shape : [shape[1], shape[2], shape[0]];
  return channels === 1 || channels === 3 ? { height, width, channels } : null;
}

/**
 * A picture as a network's input.
 *
 * picture: ImageData; declared: the preprocessing; shape: of one sample. Where the declared steps do not lead to that
 * size (a network of 28×28 that was given images of 28×28), the middle of the picture is cut to its proportions and
 * resized; `adapted` says so.
 */
export function prepare(picture, declared, shape) {
  const wanted = imageShape(shape, declared.layout);
  let image = coloured(picture, wanted.channels === 1 || declared.channels === "gray" ? 1 : 3);
  for (const step of declared.crop_first ? [crop, resize] : [resize, crop]) image = step(image, declared);
  const adapted = image.height !== wanted.height || image.width !== wanted.width;
  if (adapted) image = filled(image, wanted.height, wanted.width);
  return { x: arithmetic(image, declared), adapted };
}

function coloured({ data, width, height }, channels) {
  const pixels = new Uint8Array(width * height * channels);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    if (channels === 3) {
      pixels[to++] = data[from];
      pixels[to++] = data[from + 1];
      pixels[to++] = data[from + 2];
    } else {
      pixels[to++] = (data[from] * LUMA[0] + data[from + 1] * LUMA[1] + data[from + 2] * LUMA[2] + 0x8000) >> 16;
    }
  }
  return { pixels, width, height, channels };
}

function resize(image, { resize: side }) {
  if (side === null || side === undefined) return image;
  const { height, width } = image;
  if (Array.isArray(side)) return resized(image, side[0], side[1]);
  return height <= width
    ? resized(image, side, Math.max(1, Math.floor((side * width) / height)))
    : resized(image, Math.max(1, Math.floor((side * height) / width)), side);
}

function crop(image, { crop: side }) {
  if (side === null || side === undefined) return image;
  const [height, width] = Array.isArray(side) ? side : [side, side];
  // A picture smaller than the crop is enlarged to it; in Python that is an error.
  return height > image.height || width > image.width ? filled(image, height, width) : cut(image, height, width);
}

/** The centre of an image; half margins are rounded to even, as Python rounds. */
function cut(image, height, width) {
  const [top, left] = [rounded((image.height - height) / 2), rounded((image.width - width) / 2)];
  const row = width * image.channels;
  const pixels = new Uint8Array(height * row);
  for (let y = 0; y < height; y++) {
    const start = ((top + y) * image.width + left) * image.channels;
    pixels.set(image.pixels.subarray(start, start + row), y * row);
  }
  return { pixels, width, height, channels: image.channels };
}

function rounded(half) {
  const down = Math.floor(half);
  return half - down === 0.5 ? down + (down % 2) : Math.round(half);
}

/** The largest centre of the wanted proportions, resized. */
function filled(image, height, width) {
  const share = Math.min(image.height / height, image.width / width);
  const centre = cut(image, Math.max(1, Math.round(height * share)), Math.max(1, Math.round(width * share)));
  return resized(centre, height, width);
}

/** Bilinear with antialiasing: columns first, then rows, 8 bits between. */
export function resized(image, height, width) {
  let { pixels } = image;
  const { channels } = image;
  if (width !== image.width) {
    pixels = pass(pixels, { lines: image.height, line: image.width * channels, out: width * channels, step: channels },
      weights(image.width, width), channels);
  }
  if (height !== image.height) {
    const row = width * channels;
    pixels = pass(pixels, { lines: row, line: 1, out: 1, step: row }, weights(image.height, height), 1);
  }
  return { pixels, width, height, channels };
}

/** For every output its first input and the integer weights of those from there. */
function weights(from, to) {
  const scale = from / to;
  const support = Math.max(1, scale);
  return Array.from({ length: to }, (_, at) => {
    const centre = (at + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(from, Math.trunc(centre + support + 0.5));
    const parts = Array.from({ length: end - first }, (_, i) =>
      Math.max(0, 1 - Math.abs((i + first - centre + 0.5) / support)));
    const sum = parts.reduce((a, b) => a + b, 0);
    return { first, taps: Float64Array.from(parts, (part) => Math.trunc(0.5 + (part / sum) * 2 ** BITS)) };
  });
}

/** One direction: lines start `line` apart (`out` apart in the result), neighbours lie `step` apart. */
function pass(source, { lines, line, out, step }, kernels, channels) {
  const result = new Uint8Array(lines * (out === 1 ? kernels.length : out));
  for (let at = 0; at < lines; at++) {
    for (let to = 0; to < kernels.length; to++) {
      const { first, taps } = kernels[to];
      for (let channel = 0; channel < channels; channel++) {
        let sum = 2 ** (BITS - 1);
        let place = at * line + first * step + channel;
        for (let i = 0; i < taps.length; i++, place += step) sum += source[place] * taps[i];
        result[at * out + to * step + channel] = Math.min(255, Math.floor(sum / 2 ** BITS));
      }
    }
  }
  return result;
}

/** (pixel · scale − mean) / std in float32, colours in the network's order, layout as declared. */
function arithmetic({ pixels, width, height, channels }, declared) {
  const tables = Array.from({ length: channels }, (_, channel) => table(declared, channel));
  const x = new Float32Array(pixels.length);
  const area = width * height;
  for (let channel = 0; channel < channels; channel++) {
    const from = declared.channels === "bgr" ? channels - 1 - channel : channel;
    for (let at = 0; at < area; at++) {
      const to = declared.layout === "nhwc" ? at * channels + channel : channel * area + at;
      x[to] = tables[channel][pixels[at * channels + from]];
    }
  }
  return x;
}

function table({ scale, mean, std }, channel) {
  const of = (values, otherwise) => Math.fround(values.length > 1 ? values[channel] : (values[0] ?? otherwise));
  return Float32Array.from({ length: 256 }, (_, pixel) => {
    const scaled = Math.fround(pixel * Math.fround(scale));
    return Math.fround(Math.fround(scaled - of(mean, 0)) / of(std, 1));
  });
}

/** What a sample looks like: the arithmetic undone, or the values from least to largest where none was declared. */
export function pixelsOf(x, shape, declared) {
  const found = imageShape(shape, declared?.layout);
  if (!found) return null;
  const { height, width, channels } = found;
  const area = width * height;
  const undo = declared ? undone(declared, channels) : stretched(x);
  const data = new Uint8ClampedArray(area * 4).fill(255);
  for (let at = 0; at < area; at++) {
    for (let colour = 0; colour < 3; colour++) {
      const stored = declared?.channels === "bgr" ? channels - 1 - colour : colour;
      const channel = channels === 1 ? 0 : stored;
      const value = x[declared?.layout === "nhwc" ? at * channels + channel : channel * area + at];
      data[at * 4 + colour] = undo(value, channel);
    }
  }
  return new ImageData(data, width, height);
}

function undone({ scale, mean, std }) {
  const of = (values, channel, otherwise) => (values.length > 1 ? values[channel] : (values[0] ?? otherwise));
  return (value, channel) => (value * of(std, channel, 1) + of(mean, channel, 0)) / scale;
}

function stretched(x) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of x) [low, high] = [Math.min(low, value), Math.max(high, value)];
  return (value) => ((value - low) / (high - low || 1)) * 255;
}
