// What soft_correspondence.cpp and its body, compiled per instruction set, share: the sizes of blocks, which are part of the
// result, and a block of readings beside the packed items.
#pragma once

#include "tile.h"

namespace cox::cpu {

constexpr int64_t kItems = 192;  // of a tile: 8 readings' logits stay in the first cache level, a tile in the second
constexpr int64_t kReadings = 512;  // of a block: sums over them are in float32, beyond in float64
constexpr int64_t kSome = 64;  // readings whose shares of a tile are in memory at a time
constexpr int64_t kStep = 8;  // readings that are looked at together
constexpr float kNone = -3e38f;  // the logit of what may not be

struct Bf16;

struct Segment {  // items [from, to) of a tile are of one class
  int32_t from, to, label;
};

struct Law {  // logit = bias - half log2(u), u = (freedom + far) scale; without degrees of freedom bias - far scale
  bool student;
  float half, scale, least, shift;  // least: u at far = 0; shift = least - 1
};

struct ItemTile {
  const float* items;  // (d, kItems)
  const float* x;      // (kItems, pp)
  const float *norms, *bias;  // squared norms times scale; biases below the largest one in units of log 2
  const int32_t* label;
  const Segment *segment, *last;
  int64_t cols;  // used, a multiple of 16
  const uint32_t* pairs;  // (units, kItems), the items in bfloat16, where the block has them so
  double *total, *use;  // (kItems, dp), (kItems)
  float* top;           // of each reading of the block, the first pass's largest logit here
};

struct ReadingBlock {
  int64_t rows, d, dp, pp;  // rows: a multiple of kStep
  const float* z;           // (rows, dp)
  const float* norms;
  const int32_t* label;
  const float *high, *low;  // log2 of the mass, in two parts
  const float* no_bias;     // kItems zeros
  Law law;
  const Bf16* bf16;       // what makes products in bfloat16; null: they are in float32
  const uint32_t* pairs;  // (rows, units), the readings in bfloat16
  int64_t units;
};

struct Sums {  // of a group of tiles, per reading of the block
  float* top;
  double *mass, *weight;
  double* expected;   // (rows, pp)
  double* posterior;  // (rows, classes)
  int64_t first_class, classes;
};

struct Scratch {
  Buffer<float> logits{kStep * kItems}, u{kStep * kItems}, q{kSome * kItems}, w{kSome * kItems}, use{kItems}, x, total;
  std::vector<uint8_t> some;  // (kSome / kStep, kItems / 16): whether any share is above 0

  Scratch(int64_t dp, int64_t pp) : x(kSome * pp), total(kItems * dp), some(kSome / kStep * kItems / 16) {}
};

}  // namespace cox::cpu
