// Products of bfloat16 rows (bf16.h) for each instruction set that has them.
#include "bf16.h"

#include <cmath>

#include "screen.h"

#if defined(__x86_64__) && __has_include(<avx512bf16intrin.h>)
#include <immintrin.h>
#define COX_PAIRS 1
#else
#define COX_PAIRS 0
#endif
#if COX_PAIRS && defined(__linux__) && __has_include(<amxbf16intrin.h>)
#include <cpuid.h>
#define COX_AMX 1
#else
#define COX_AMX 0
#endif

namespace cox::cpu {
namespace {

constexpr int64_t kAcross = 3;  // tiles of items side by side
static_assert(kItems % (16 * kAcross) == 0 && kStep <= 16);

void nothing() {}

namespace emulated {

thread_local bool configured = false;  // AMX's tiles, too, are each thread's own
void enter() { configured = true; }
void leave() { configured = false; }

float number(uint16_t upper) {  // subnormal numbers count as 0
  const uint32_t bits = static_cast<uint32_t>(upper) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return std::abs(f) < 0x1p-126f ? 0.0f : f;
}

struct Pairs {  // as the instruction's definition says: sums of the first and of the second halves, then both to c
  uint16_t a[kStep][2 * kBf16Units], b[kAcross][kBf16Units][32];
  float c[kAcross][kStep][16];

  void clear() {
    COX_CHECK(configured, "soft_correspondence: tiles are used before enter()");
    memset(c, 0, sizeof c);
  }
  void readings(const uint32_t* p, int64_t stride) {
    for (int64_t m = 0; m < kStep; ++m) memcpy(a[m], reinterpret_cast<const char*>(p) + m * stride, sizeof a[m]);
  }
  void items(const uint32_t* p, int64_t stride) {
    for (int64_t h = 0; h < kAcross; ++h) {
      for (int64_t k = 0; k < kBf16Units; ++k) {
        memcpy(b[h][k], reinterpret_cast<const char*>(p + 16 * h) + k * stride, sizeof b[h][k]);
      }
    }
  }
  void multiply() {
    for (int64_t h = 0; h < kAcross; ++h) {
      for (int64_t m = 0; m < kStep; ++m) {
        for (int64_t n = 0; n < 16; ++n) {
          float sum[2] = {};
          for (int64_t k = 0; k < kBf16Units; ++k) {
            for (int64_t i = 0; i < 2; ++i) sum[i] += number(a[m][2 * k + i]) * number(b[h][k][2 * n + i]);
          }
          c[h][m][n] += sum[0] + sum[1];
        }
      }
    }
  }
  void store(float* p, int64_t stride) const {
    for (int64_t h = 0; h < kAcross; ++h) {
      for (int64_t m = 0; m < kStep; ++m) memcpy(reinterpret_cast<char*>(p + 16 * h) + m * stride, c[h][m], 64);
    }
  }
};

}  // namespace emulated

#define COX_NS emulated
#define COX_TARGET
#include "bf16_tiles.h"
#undef COX_NS
#undef COX_TARGET

#if COX_PAIRS
namespace avx512 {

__attribute__((target("avx512f,avx512bf16"))) void products(const uint32_t* z, const uint32_t* items, int64_t units,
                                                            int64_t cols, float* out) {
  for (int64_t c = 0; c < cols; c += 16 * kAcross) {
    __m512 acc[kStep][kAcross];
#pragma GCC unroll 8
    for (int64_t r = 0; r < kStep; ++r) {
#pragma GCC unroll 8
      for (int64_t h = 0; h < kAcross; ++h) acc[r][h] = _mm512_setzero_ps();
    }
    for (int64_t u = 0; u < units; ++u) {
      __m512bh row[kAcross];
#pragma GCC unroll 8
      for (int64_t h = 0; h < kAcross; ++h) row[h] = (__m512bh)_mm512_loadu_si512(items + u * kItems + c + 16 * h);
#pragma GCC unroll 8
      for (int64_t r = 0; r < kStep; ++r) {
        const __m512bh at = (__m512bh)_mm512_set1_epi32(static_cast<int32_t>(z[r * units + u]));
#pragma GCC unroll 8
        for (int64_t h = 0; h < kAcross; ++h) acc[r][h] = _mm512_dpbf16_ps(acc[r][h], row[h], at);
      }
    }
#pragma GCC unroll 8
    for (int64_t r = 0; r < kStep; ++r) {
#pragma GCC unroll 8
      for (int64_t h = 0; h < kAcross; ++h) _mm512_storeu_ps(out + r * kItems + c + 16 * h, acc[r][h]);
    }
  }
}

}  // namespace avx512
#endif

#if COX_AMX
namespace amx {
#define COX_TILES __attribute__((target("amx-tile,amx-bf16")))

struct Configuration {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 4 * kBf16Units, 64, 64, 64};  // of a row; c three times, a, b three times
  uint8_t rows[16] = {kStep, kStep, kStep, kStep, kBf16Units, kBf16Units, kBf16Units};
};
constexpr Configuration configuration;
static_assert(sizeof configuration == 64);

COX_TILES void enter() { _tile_loadconfig(&configuration); }
COX_TILES void leave() { _tile_release(); }

struct Pairs {
  COX_TILES static void clear() {
    __asm__ volatile("" ::: "memory");  // what the tiles are loaded from is written
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
  }
  COX_TILES static void readings(const uint32_t* p, int64_t stride) { _tile_loadd(3, p, stride); }
  COX_TILES static void items(const uint32_t* p, int64_t stride) {
    _tile_loadd(4, p, stride);
    _tile_loadd(5, p + 16, stride);
    _tile_loadd(6, p + 32, stride);
  }
  COX_TILES static void multiply() {
    _tile_dpbf16ps(0, 3, 4);
    _tile_dpbf16ps(1, 3, 5);
    _tile_dpbf16ps(2, 3, 6);
  }
  COX_TILES static void store(float* p, int64_t stride) {
    _tile_stored(0, p, stride);
    _tile_stored(1, p + 16, stride);
    _tile_stored(2, p + 32, stride);
    __asm__ volatile("" ::: "memory");
  }
};

}  // namespace amx

#define COX_NS amx
#define COX_TARGET COX_TILES
#include "bf16_tiles.h"
#undef COX_NS
#undef COX_TARGET
#endif

constexpr Bf16 kEmulated = {kBf16Units, &emulated::products, &emulated::enter, &emulated::leave};
#if COX_PAIRS
constexpr Bf16 kAvx512 = {1, &avx512::products, &nothing, &nothing};
#endif
#if COX_AMX
constexpr Bf16 kAmx = {kBf16Units, &amx::products, &amx::enter, &amx::leave};
#endif

// Whether an instruction set gives what the emulation gives, for numbers of which float32 holds every sum.
bool works(const Bf16& one) {
  constexpr int64_t units = 2 * kBf16Units;
  alignas(64) uint32_t z[kStep * units], items[units * kItems];
  alignas(64) float out[2][kStep * kItems];
  uint32_t state = 1;
  const auto fill = [&](uint32_t* p, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      float pair[2];
      for (float& f : pair) {
        state = state * 1664525u + 1013904223u;
        f = static_cast<float>(static_cast<int32_t>(state >> 24) - 128) / 64;  // of 8 bits: sums are below 2^20 units
      }
      p[i] = bf16_pair(pair[0], pair[1]);
    }
  };
  fill(z, kStep * units);
  fill(items, units * kItems);
  const Bf16* both[] = {&one, &kEmulated};
  for (int n = 0; n < 2; ++n) {
    both[n]->enter();
    both[n]->products(z, items, units, kItems, out[n]);
    both[n]->leave();
  }
  return memcmp(out[0], out[1], sizeof out[0]) == 0;
}

const Bf16* find_avx512() {
#if COX_PAIRS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512bf16") && works(kAvx512)) return &kAvx512;
#endif
  return nullptr;
}

const Bf16* find_amx() {
#if COX_AMX
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kHasBf16 = 1u << 22;  // leaf 7
  if (amx_works() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kHasBf16) != 0 && works(kAmx)) return &kAmx;
#endif
  return nullptr;
}

}  // namespace

const Bf16* pick_bf16() {
  static const Bf16 *const pairs = find_avx512(), *const tiles = find_amx();
  const int level = isa_level();
  return level == kEmulatedTiles ? &kEmulated : level == 4 && tiles ? tiles : level >= 3 ? pairs : nullptr;
}

std::string bf16_chosen() {
  const Bf16* one = pick_bf16();
#if COX_PAIRS
  if (one == &kAvx512) return "avx512_bf16";
#endif
  return !one ? "none" : one == &kEmulated ? "amx_emulated" : "amx_bf16";
}

}  // namespace cox::cpu
