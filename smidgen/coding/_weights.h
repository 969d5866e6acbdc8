/* The model of quantized weight matrices: contexts.py. */
#ifndef SMIDGEN_WEIGHTS_H
#define SMIDGEN_WEIGHTS_H

#include "_mixture.h"

typedef struct {
    int64_t value;
    int seen;
} Mean;

typedef struct {
    Mixer mixer;
    int signs, selector;
    uint32_t *base[MODELS];
    const int32_t *rows[3];
    int32_t taps[ROWS][TAPS];
    Mean overall;
} Weights;

#if defined(__GNUC__) || defined(__clang__)
static int highest(uint64_t value) { return 63 - __builtin_clzll(value); }
#else
static int highest(uint64_t value) {
    int bit = 0;
    while (value >>= 1) bit++;
    return bit;
}
#endif

/* 16 log2(value), the fraction linear; value at least 1. */
static int logarithm(uint64_t value) {
    int bit = highest(value);
    return bit << 4 | (int)(bit < 4 ? (value << (4 - bit)) & 15 : (value >> (bit - 4)) & 15);
}
static int bucket(uint32_t size) {
    if (size < 4) return (int)size;
    int bit = highest(size), at = 2 * bit + (int)(size >> (bit - 1) & 1);
    return at < 15 ? at : 15;
}
static uint32_t size_of(int32_t value) { return value < 0 ? 0u - (uint32_t)value : (uint32_t)value; }
static int side(int32_t value) { return value > 0 ? 2 : value < 0; }

static void mean_learn(const Mixer *mixer, Mean *mean, uint32_t size, int limit) {
    int64_t target = (int64_t)(size < 1048576 ? size : 1048576) << 16;
    mean->value += ((target - mean->value) * mixer->share[mean->seen]) >> 16;
    if (mean->seen < limit) mean->seen++;
}

static int weight_bit(Weights *self, int node, int kind, int bit) {
    int32_t inputs[INPUTS] = {self->rows[0][kind], self->rows[1][kind], self->rows[2][kind], 256};
    uint32_t *slots[MODELS];
    for (int i = 0; i < MODELS; i++) slots[i] = self->base[i] + node;
    return mix_bit(&self->mixer, slots, inputs, EXTRA, inputs[0], self->selector * NODES + node, bit);
}

static int64_t code_size(Weights *self, int64_t size) {
    for (int step = 0; step < UNARY; step++)
        if (!weight_bit(self, step, step > 0, size > step)) return step;
    int64_t rest = size - UNARY, got = 0;
    int digits = 0;
    while (digits < 32 && weight_bit(self, PREFIX + (digits < PREFIXES ? digits : PREFIXES - 1), 2 + digits,
                                     rest >= ((int64_t)2 << digits) - 1))
        digits++;
    if (digits == 32) return -1;
    int64_t offset = rest - (((int64_t)1 << digits) - 1);
    for (int i = digits - 1; i >= 0; i--) {
        int bit = (int)(offset >> i) & 1;
        if (i == digits - 1 && digits < MANTISSAS) bit = weight_bit(self, MANTISSA + digits, 34 + i, bit);
        else bit = range_bit(&self->mixer.range, (uint32_t)self->mixer.squash[self->rows[0][34 + i] + EDGE], bit);
        got |= (int64_t)bit << i;
    }
    return UNARY + got + ((int64_t)1 << digits) - 1;
}

/* The values round a weight: zero where there is none. */
typedef struct {
    const int32_t *row, *above, *above2;
    int64_t at, columns;
} Place;
static int32_t left(const Place *place, int64_t by) { return place->at >= by ? place->row[place->at - by] : 0; }
static int32_t over(const Place *place, int64_t by) {
    int64_t at = place->at + by;
    return place->above && at >= 0 && at < place->columns ? place->above[at] : 0;
}

static int64_t predict(const Place *place, int64_t period, int64_t width, const int32_t *taps, int32_t *near) {
    const int32_t around[TAPS] = {left(place, 1),
                                  left(place, 2),
                                  over(place, 0),
                                  place->above2 ? place->above2[place->at] : 0,
                                  left(place, period),
                                  left(place, 2 * period),
                                  left(place, width),
                                  left(place, width + 1),
                                  width > 1 ? left(place, width - 1) : 0,
                                  left(place, 2 * width)};
    int64_t sum = 0;
    for (int i = 0; i < TAPS; i++) {
        near[i] = clamp(around[i], -32767, 32767);
        sum += (int64_t)taps[i] * near[i];
    }
    return sum >> 4;
}

static void predictor_learn(int32_t *taps, const int32_t *near, int64_t predicted, int32_t value, int64_t mean) {
    int64_t error = (int64_t)clamp(value, -32767, 32767) * 4096 - predicted, energy = 0, floor = (mean >> 16) + 1;
    for (int i = 0; i < TAPS; i++) energy += (int64_t)near[i] * near[i];
    int64_t size = (error < 0 ? -error : error) * (8000 * 256) / (4096 * (energy + TAPS * floor * floor));
    int64_t step = error < 0 ? -size : size;
    for (int i = 0; i < TAPS; i++) taps[i] = clamp(taps[i] + ((step * near[i]) >> 8), -262144, 262144);
}

static int code_sign(Weights *self, const Place *place, int64_t period, int64_t width, int position, int lean,
                     int shade, int negative) {
    int l = side(left(place, 1)), l2 = side(left(place, 2)), a = side(over(place, 0)), p = side(left(place, period)),
        p2 = side(left(place, 2 * period)), k = side(left(place, width)), k2 = side(left(place, 2 * width));
    const int contexts[MODELS] = {l * 3 + l2 + 9 * a,          p * 9 + p2 * 3 + a, k * 27 + a * 9 + l * 3 + p,
                                  16 + lean * shade,           k * 3 + k2,         position,
                                  position % 64 * 3 + lean + 1};
    uint32_t *slots[MODELS];
    for (int i = 0; i < MODELS; i++) slots[i] = self->mixer.slots + ((size_t)i * ROWS + contexts[i]) * NODES + SIGN;
    int32_t inputs[INPUTS] = {0, -lean * self->mixer.lean[shade], 0, 256};
    return mix_bit(&self->mixer, slots, inputs, EXTRA, 0, (self->selector + 4) * NODES + SIGN, negative);
}

static int code_weight(Weights *self, Place *place, int64_t period, int64_t width, Mean *row, Mean *column, Mean *local,
                       int32_t *target) {
    Mixer *mixer = &self->mixer;
    int32_t near[TAPS] = {0};
    int position = (int)(place->at % period % ROWS), lean = 0, shade = 0;
    int64_t predicted = 0;
    uint64_t around = 2 * (uint64_t)size_of(left(place, 1)) + size_of(left(place, 2)) +
                      2 * (uint64_t)size_of(over(place, 0)) + (place->above2 ? size_of(place->above2[place->at]) : 0) +
                      size_of(left(place, period)) + size_of(left(place, 2 * period)) + size_of(over(place, -1)) +
                      size_of(over(place, 1));
    int row_log = logarithm((row->value >> 4) + 1), column_log = logarithm((column->value >> 4) + 1);
    int scale = clamp(row_log + column_log - logarithm((self->overall.value >> 4) + 1), 0, 4 * LEVELS - 1);
    if (self->signs) {
        predicted = predict(place, period, width, self->taps[position], near);
        lean = (predicted > 0) - (predicted < 0);
        shade =
            clamp((logarithm((uint64_t)(predicted < 0 ? -predicted : predicted) + 1) - scale + 72) >> 3, 0, SHADES - 1);
    }
    self->selector = (shade >= 3) + (shade >= 6) + (shade >= 8);
    int local_level = clamp(logarithm((local->value >> 4) + 1) >> 2, 0, LEVELS - 1), level = scale >> 2;
    self->rows[0] = mixer->prior + level * KINDS;
    self->rows[1] = mixer->prior + local_level * KINDS;
    self->rows[2] = mixer->prior + clamp(row_log >> 2, 0, LEVELS - 1) * KINDS;
    const int contexts[MODELS] = {bucket(size_of(left(place, 1))) * 16 + bucket(size_of(left(place, 2))),
                                  clamp(logarithm((around << 9) + 1) >> 2, 0, ROWS - 1),
                                  clamp(column_log >> 2, 0, LEVELS - 1),
                                  level,
                                  local_level,
                                  position,
                                  (level >> 1 & 15) << 4 | shade};
    for (int i = 0; i < MODELS; i++) self->base[i] = mixer->slots + ((size_t)i * ROWS + contexts[i]) * NODES;
    int decoding = mixer->range.decoding, negative = *target < 0;
    int64_t size = code_size(self, decoding ? 0 : (int64_t)size_of(*target));
    if (size < 0 || size > 2147483648LL) return 0;
    if (size)
        negative = self->signs ? code_sign(self, place, period, width, position, lean, shade, negative)
                               : range_bit(&mixer->range, 32768, negative);
    if (size == 2147483648LL && !negative) return 0;
    if (decoding) *target = (int32_t)(negative ? -size : size);
    if (self->signs) predictor_learn(self->taps[position], near, predicted, *target, self->overall.value);
    mean_learn(mixer, row, (uint32_t)size, 1000);
    mean_learn(mixer, column, (uint32_t)size, 60);
    mean_learn(mixer, &self->overall, (uint32_t)size, 1000);
    mean_learn(mixer, local, (uint32_t)size, 6);
    return !range_overran(&mixer->range);
}

static int code_matrix(Weights *self, int32_t *values, const int64_t *shape) {
    int64_t rows = shape[0], columns = shape[1];
    Mean *scales = calloc(columns ? (size_t)columns : 1, sizeof *scales);
    if (!scales) return -1;
    int fine = 1;
    for (int64_t r = 0; fine && r < rows; r++) {
        Mean row = {self->overall.value, 2}, local = {self->overall.value, 2};
        int32_t *current = values + r * columns;
        Place place = {current, r > 0 ? current - columns : NULL, r > 1 ? current - 2 * columns : NULL, 0, columns};
        for (; fine && place.at < columns; place.at++) {
            Mean *column = scales + place.at;
            if (!column->seen) {
                column->value = self->overall.value;
                column->seen = 2;
            }
            fine = code_weight(self, &place, shape[2], shape[3], &row, column, &local, current + place.at);
        }
    }
    free(scales);
    return fine;
}

static int code_weights(Weights *self, const int32_t *tables, int32_t *values, const int64_t *shapes, size_t matrices,
                        int rate) {
    Mixer *mixer = &self->mixer;
    mixer->models = MODELS;
    mixer->limit = 255;
    mixer->rate = rate;
    mixer->boost = 300 * 16;
    mixer->fresh = 1;
    self->overall.value = 1 << 14;
    if (!mixer_open(mixer, tables, (size_t)MODELS * ROWS * NODES, SELECTORS * NODES, EXTRA, 2000, 6000)) return -1;
    int fine = 1;
    for (size_t i = 0; fine == 1 && i < matrices; i++) {
        const int64_t *shape = shapes + SHAPE * i;
        self->signs = shape[4] != 0;
        fine = code_matrix(self, values, shape);
        values += shape[0] * shape[1];
    }
    if (fine == 1 && !mixer->range.decoding) range_close(&mixer->range);
    return fine;
}

#endif
