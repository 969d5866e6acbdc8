/* The model of bytes: bytemodel.py. */
#ifndef SMIDGEN_BYTES_H
#define SMIDGEN_BYTES_H

#include "_mixture.h"

typedef struct {
    Mixer mixer;
    uint32_t hashes[BYTE_MODELS];
    int32_t last[1 << MATCH_BITS];
    uint8_t *histories;
    size_t match, matched;
} Text;

/* Bytes before that make a context, bit k for the k-th: the last 0, 1, 2, 3, 4, 6, and some with the last left out. */
static const uint32_t MASKS[BYTE_MASKS] = {0x00, 0x02, 0x06, 0x0E, 0x1E, 0x7E, 0x0C, 0x10, 0x70, 0x38};

static uint32_t mixed(uint32_t value) {
    value *= 0x9E3779B1u;
    return (value ^ value >> 15) * 0x85EBCA6Bu;
}

/* Hashes of the contexts of the byte at `at`, and where its longest match goes on. */
static void text_contexts(Text *self, const uint8_t *bytes, size_t at, size_t stride) {
    for (int i = 0; i < BYTE_MASKS; i++) {
        uint32_t hash = 0;
        for (size_t back = 1; MASKS[i] >> back; back++)
            if (MASKS[i] >> back & 1) hash = mixed(hash + (at >= back ? bytes[at - back] : 0u) + 0x3D4D51CBu);
        self->hashes[i] = hash;
    }
    self->hashes[BYTE_MASKS] =
        mixed((uint32_t)(at % stride) * 256u + (at >= stride ? bytes[at - stride] : 0u) + 0x2545F491u);
    if (self->matched && bytes[self->match] == bytes[at - 1]) {
        self->match++;
        if (self->matched < LONGEST) self->matched++;
    } else self->matched = 0;
    if (at < 4) return;
    uint32_t key = mixed((uint32_t)bytes[at - 1] | (uint32_t)bytes[at - 2] << 8 | (uint32_t)bytes[at - 3] << 16 |
                         (uint32_t)bytes[at - 4] << 24) >>
                   (32 - MATCH_BITS);
    if (!self->matched && self->last[key]) {
        self->match = (size_t)self->last[key];
        while (self->matched < LONGEST && self->matched < self->match &&
               bytes[self->match - 1 - self->matched] == bytes[at - 1 - self->matched])
            self->matched++;
    }
    self->last[key] = (int32_t)at;
}

/* Zeros and ones seen in a context, four bits each; the other count is cut down: what came last tells the most. */
static uint8_t history_after(uint8_t history, int bit) {
    int same = bit ? history & 15 : history >> 4, other = bit ? history >> 4 : history & 15;
    if (same < 15) same++;
    if (other > 2) other = (other + 3) >> 1;
    return (uint8_t)(bit ? other << 4 | same : same << 4 | other);
}

/* Every history starts at the chance that its counts suggest. */
static void histories_open(Mixer *mixer) {
    for (uint32_t i = 0; i < BYTE_MODELS - 1; i++)
        for (uint32_t zeros = 0; zeros < 16; zeros++)
            for (uint32_t ones = 0; ones < 16; ones++)
                if (zeros + ones)
                    mixer->slots[i << 8 | zeros << 4 | ones] =
                        (4194303u * (5 * ones + 1) / (5 * (zeros + ones) + 2)) << 10 | 2;
}

/* The first `known` of the bytes are on both sides already; they only teach the model. */
static int code_text(Text *self, const int32_t *tables, uint8_t *bytes, size_t known, size_t count, size_t stride) {
    Mixer *mixer = &self->mixer;
    mixer->models = BYTE_MODELS;
    mixer->limit = 255;
    mixer->rate = 30;
    mixer->boost = 1500 * 16;
    mixer->fresh = 0;
    if (!mixer_open(mixer, tables, (size_t)BYTE_MODELS << 8, BYTE_SELECTORS, 1, 0, 9000)) return -1;
    self->histories = calloc((size_t)(BYTE_MODELS - 1) << BYTE_SLOT_BITS, 1);
    if (!self->histories) return -1;
    histories_open(mixer);
    for (size_t at = 0; at < count; at++) {
        mixer->range.quiet = at < known;
        text_contexts(self, bytes, at, stride);
        uint32_t node = 1;
        int given = bytes[at], length = (int)self->matched;
        int selector = length == 0 ? 0 : length < 8 ? 1 : length < 24 ? 2 : 3;
        for (int place = 7; place >= 0; place--) {
            uint32_t *slots[BYTE_MODELS];
            uint8_t *histories[BYTE_MODELS - 1];
            for (uint32_t i = 0; i < BYTE_MODELS - 1; i++) {
                histories[i] = self->histories + ((size_t)i << BYTE_SLOT_BITS) +
                               (mixed(self->hashes[i] + node * 0x27D4EB2Fu) >> (32 - BYTE_SLOT_BITS));
                slots[i] = mixer->slots + (i << 8) + *histories[i];
            }
            uint32_t expected = length ? bytes[self->match] | 256u : 0;
            int agrees = length && expected >> (place + 1) == node;
            slots[BYTE_MODELS - 1] =
                mixer->slots + ((BYTE_MODELS - 1) << 8) + (agrees ? 2 * (uint32_t)length + (expected >> place & 1) : 0);
            int32_t inputs[BYTE_MODELS + 1] = {256};
            int bit = mix_bit(mixer, slots, inputs, 1, 0, selector, given >> place & 1);
            for (int i = 0; i < BYTE_MODELS - 1; i++) *histories[i] = history_after(*histories[i], bit);
            node = node << 1 | (uint32_t)bit;
        }
        bytes[at] = (uint8_t)node;
        if (range_overran(&mixer->range)) return 0;
    }
    if (!mixer->range.decoding) range_close(&mixer->range);
    return 1;
}

#endif
