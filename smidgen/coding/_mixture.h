/* A range coder of bits, and mixtures of adaptive counters for their chances: arithmetic.py. */
#ifndef SMIDGEN_MIXTURE_H
#define SMIDGEN_MIXTURE_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Kept equal to tables.py, contexts.py and bytemodel.py; tests compare the bytes. */
enum {
    EDGE = 2816,
    LEVELS = 128,
    KINDS = 66,
    SHADES = 16,
    TABLE_SIZE = (2 * EDGE + 1) + 4096 + 1024 + LEVELS * KINDS + SHADES,
    NODES = 64,
    SIGN = 63,
    UNARY = 8,
    PREFIX = 8,
    PREFIXES = 24,
    MANTISSA = 32,
    MANTISSAS = 17,
    MODELS = 7,
    ROWS = 256,
    EXTRA = 4,
    INPUTS = MODELS + EXTRA,
    SELECTORS = 8,
    TAPS = 10,
    BYTE_MASKS = 10,
    BYTE_MODELS = BYTE_MASKS + 2,
    BYTE_SLOT_BITS = 18,
    BYTE_SELECTORS = 4,
    MATCH_BITS = 16,
    LONGEST = 32,
    WEIGHT_LIMIT = 1 << 20,
    SHAPE = 5 /* rows, columns, period, width, signs */
};

/* Read past the end of a stream; not zeros, which are the cheapest symbols of a cut stream and would go unnoticed. */
#define PAD 0x5A
#define PADDING 0x5A5A5A5A5A5A5A5Au

typedef struct {
    uint64_t low, high, code;
    const uint8_t *in;
    size_t size, at;
    uint8_t *out;
    size_t room, length;
    int decoding, failed, quiet;
} Range;

typedef struct {
    Range range;
    const int32_t *squash, *stretch, *share, *prior, *lean;
    uint32_t *slots;
    int32_t *weights;
    uint16_t *seen;
    int inputs, models, limit, rate, boost, fresh;
} Mixer;

static int clamp(int64_t value, int low, int high) { return value < low ? low : value > high ? high : (int)value; }

/* ---- range coder ---- */

static void put(Range *range, uint8_t byte) {
    if (range->length == range->room) {
        size_t room = range->room * 2 + 64;
        uint8_t *grown = realloc(range->out, room);
        if (!grown) {
            range->failed = 1;
            return;
        }
        range->out = grown;
        range->room = room;
    }
    range->out[range->length++] = byte;
}

static uint8_t take(Range *range) {
    uint8_t byte = range->at < range->size ? range->in[range->at] : PAD;
    range->at++;
    return byte;
}

static void range_open(Range *range, const uint8_t *in, size_t size, int decoding) {
    memset(range, 0, sizeof *range);
    range->high = UINT64_MAX;
    range->in = in;
    range->size = size;
    range->decoding = decoding;
    for (int i = 0; decoding && i < 8; i++) range->code = range->code << 8 | take(range);
}

static int range_bit(Range *range, uint32_t probability, int bit) {
    if (range->quiet) return bit; /* both sides know it: the models learn, the stream does not grow */
    uint64_t width = range->high - range->low;
    uint64_t middle = range->low + (width >> 16) * probability + (((width & 0xffff) * probability) >> 16);
    if (range->decoding) bit = range->code <= middle;
    if (bit) range->high = middle;
    else range->low = middle + 1;
    while (!((range->low ^ range->high) >> 56)) {
        if (range->decoding) range->code = range->code << 8 | take(range);
        else put(range, (uint8_t)(range->high >> 56));
        range->low <<= 8;
        range->high = range->high << 8 | 255;
    }
    return bit;
}

/* The fewest bytes that, with padding after them, lie in [low, high]: what ends a stream. */
static int tail(const Range *range, uint64_t *value) {
    for (int bytes = 0; bytes < 8; bytes++) {
        uint64_t mask = UINT64_MAX >> (8 * bytes), padding = mask & PADDING;
        *value = (range->low & ~mask) | padding;
        if (*value < range->low) *value += mask + 1;
        if (*value >= range->low && *value <= range->high) return bytes;
    }
    *value = range->low;
    return 8;
}

static void range_close(Range *range) {
    uint64_t value;
    int bytes = tail(range, &value);
    for (int i = 0; i < bytes; i++) put(range, (uint8_t)(value >> (56 - 8 * i)));
}

static int range_ended_well(const Range *range) {
    uint64_t value;
    int bytes = tail(range, &value);
    return !range->failed && range->at - 8 + (size_t)bytes == range->size && range->code == value;
}

static int range_overran(const Range *range) {
    return range->failed || (range->decoding && range->at > range->size + 8);
}

/* ---- counters and their mixture ---- */

static void counter_learn(const Mixer *mixer, uint32_t *slot, int bit) {
    int32_t chance = (int32_t)(*slot >> 10), seen = (int32_t)(*slot & 1023);
    chance += (int32_t)(((int64_t)((bit ? 4194303 : 0) - chance) * mixer->share[seen]) >> 16);
    if (seen < mixer->limit) seen++;
    *slot = (uint32_t)chance << 10 | (uint32_t)seen;
}

/* inputs[0 .. extra) are given; the counters' follow. An unseen counter speaks as `guess`, starts from the mixture. */
static int mix_bit(Mixer *mixer, uint32_t *const *slots, int32_t *inputs, int extra, int guess, int set, int bit) {
    int count = mixer->inputs;
    for (int i = 0; i < mixer->models; i++)
        inputs[extra + i] = *slots[i] & 1023 ? mixer->stretch[*slots[i] >> 20] : guess;
    int32_t *weights = mixer->weights + (size_t)set * count;
    int64_t dot = 0;
    for (int i = 0; i < count; i++) dot += (int64_t)weights[i] * inputs[i];
    int chance = mixer->squash[clamp(dot >> 16, -EDGE, EDGE) + EDGE];
    bit = range_bit(&mixer->range, (uint32_t)chance, bit);
    int64_t step = (int64_t)((bit << 16) - chance) * (mixer->rate + mixer->boost / (mixer->seen[set] + 16));
    if (mixer->seen[set] < 65535) mixer->seen[set]++;
    for (int i = 0; i < count; i++)
        weights[i] = clamp(weights[i] + ((inputs[i] * step + (1 << 21)) >> 22), -WEIGHT_LIMIT, WEIGHT_LIMIT);
    for (int i = 0; i < mixer->models; i++) {
        if (!(*slots[i] & 1023)) *slots[i] = (uint32_t)chance << 16 | (uint32_t)mixer->fresh;
        counter_learn(mixer, slots[i], bit);
    }
    return bit;
}

static int mixer_open(Mixer *mixer, const int32_t *tables, size_t slots, int sets, int extra, int first, int rest) {
    mixer->squash = tables;
    mixer->stretch = mixer->squash + 2 * EDGE + 1;
    mixer->share = mixer->stretch + 4096;
    mixer->prior = mixer->share + 1024;
    mixer->lean = mixer->prior + LEVELS * KINDS;
    mixer->inputs = extra + mixer->models;
    mixer->slots = calloc(slots, sizeof *mixer->slots);
    mixer->weights = malloc(sizeof *mixer->weights * (size_t)sets * mixer->inputs);
    mixer->seen = calloc((size_t)sets, sizeof *mixer->seen);
    if (!mixer->slots || !mixer->weights || !mixer->seen) return 0;
    for (int set = 0; set < sets; set++)
        for (int i = 0; i < mixer->inputs; i++)
            mixer->weights[set * mixer->inputs + i] = i < extra - 1 ? first : i == extra - 1 ? 0 : rest;
    return 1;
}

static void mixer_close(Mixer *mixer) {
    free(mixer->slots);
    free(mixer->weights);
    free(mixer->seen);
    free(mixer->range.out);
}

#endif
