// Inner loops of nearest_anchor's screen, one set for each instruction set (screen.cpp), chosen at run time.
//
// Rows are quantised to 8 or 16 bits and packed in units of 4 bytes (4 or 2 coordinates): kQuery queries side by side,
// [step][kQuery], and kBank bank rows side by side, [step][kBank], so that one unit of a query meets a vector of bank
// rows (AMX: 16 x 16 of them meet in a tile, screen_tiles.h). Dot products are integers: exact, the same on every
// instruction set.
#pragma once

#include <cstdint>

#include "tile.h"

namespace cox::cpu {

constexpr int64_t kQuery = 12, kBank = 32;  // pairs per tile: 12 x 2 accumulators of 16 lanes
constexpr int64_t kDeep = 16;  // units of a row in one of AMX's tiles

struct Rounded {  // of one row x, in double: q = round(x / scale)
  double rest2, q2;  // ||x - scale q||^2, ||q||^2
  int64_t sum;       // of q
};

// In the units of the screen (nearest_anchor.cpp), rounded upwards: squared norm n, norm h, rounding's norm
// e = ||x - x^||, d = n - ||x^||^2.
struct QueryPanel {  // of kQuery queries, room for 16
  alignas(64) float n[16], h[16], e[16], d[16], mul[16];
  int32_t init[16];
};
struct BankSpan {  // the largest of kBank rows; h of the rounded rows
  float n, h, e;
};
struct BankPanel {  // kBank rows: x^ = t q
  alignas(64) float t[kBank], n[kBank], e[kBank], d[kBank];
  BankSpan most;
};
constexpr float kFloor = 0x1p-100f, kFloorRoot = 0x1p-48f, kGamma = 0x1p-19f, kMargin = 1 + 0x1p-12f;

struct Screen {
  // out[r][c] = init[r] + sum_d q[r][d] * b[c][d], modulo 2^32; 8 bits: q signed, b with `offset` added, so unsigned.
  void (*dots8)(const int32_t* q, const int32_t* b, int64_t steps, const int32_t* init, int32_t* out);
  void (*dots16)(const int32_t* q, const int32_t* b, int64_t steps, const int32_t* init, int32_t* out);
  int bank_most8, offset8;  // |b| <= bank_most8 before the offset
  // 8 bits: steps come in multiples of this; if it is not 1, queries lie in rows, [kQuery][steps], 0 behind their end
  int64_t deep8;
  void (*enter)();  // before a thread's first dots8 ...
  void (*leave)();  // ... and after its last
  // What makes a query's squared distances to kBank rows lower bounds: add[k][16], and weigh[2][16] for the rows' e and
  // d; what to take off the sum of their roots: slack[16]; and the limit[16] on that sum for a reach. See
  // nearest_anchor.cpp.
  void (*bounds)(const QueryPanel& q, const float* reach, const BankPanel* b, int64_t maps, float* add, float* weigh,
                 float* slack, float* limit);
  // total[r][c] = (first ? 0 : total[r][c])
  //               + root(max(kFloor, x)), x = n[c] + add[r] + mul[r] * t[c] * dots[r][c]
  //                                           - weigh[0][r] * e[c] - weigh[1][r] * d[c];
  // the root's relative error is below 2^-13.
  void (*roots)(const int32_t* dots, const BankPanel& b, const float* add, const float* weigh, const float* mul,
                bool first, float* total);
  // bit c of mask[r] = total[r][c] < limit[r]; returns whether there is any
  bool (*below)(const float* total, const float* limit, uint32_t* mask);
  // x[d] = src[d] - centre[d] (+ x[d] where `add`), d < dp with dp a multiple of 16; returns max |x|, and sum x^2 in *n
  double (*centred)(const float* src, const double* centre, bool add, double* x, int64_t dp, double* n);
  // q of one row for a given scale, packed: dst[step * stride]. 8 bits: `offset` is added.
  Rounded (*round)(const double* x, double scale, int64_t dp, int64_t steps, bool wide, int offset, int64_t stride,
                   int32_t* dst);
  // sum_d (z_d - v_d)^2 in float64 for `rows` <= 4 rows: 16 interleaved sums, multiply and add rounded apart, then a
  // binary tree; the same bits on every instruction set
  void (*squares)(const float* z, const float* const* v, int64_t rows, int64_t d, double* out);
};

const Screen& pick_screen();  // for the chosen instruction set
bool amx_works();

}  // namespace cox::cpu
