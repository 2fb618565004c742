// The 4 x 4 tile of direct squared distances for each instruction set, and the choice between them at run time.
#include "screen.h"

#include <atomic>
#include <cstdlib>

#if defined(__x86_64__)
#include <immintrin.h>
#define COX_X86 1
#else
#define COX_X86 0
#endif

namespace cox::cpu {
namespace {

#define COX_NS plain
#define COX_TARGET
#define COX_BYTES 16
#define COX_R 2
#define COX_C 1
#define COX_MADD_F(d, a) ((a) + (d) * (d))
#define COX_MADD_D(d, a) ((a) + (d) * (d))
#include "tile_body.h"
#undef COX_NS
#undef COX_TARGET
#undef COX_BYTES
#undef COX_R
#undef COX_C
#undef COX_MADD_F
#undef COX_MADD_D

#if COX_X86
#define COX_NS avx2
#define COX_TARGET __attribute__((target("avx2,fma")))
#define COX_BYTES 32
#define COX_R 2
#define COX_C 2
#define COX_MADD_F(d, a) (VF)_mm256_fmadd_ps((__m256)(d), (__m256)(d), (__m256)(a))
#define COX_MADD_D(d, a) (VD)_mm256_fmadd_pd((__m256d)(d), (__m256d)(d), (__m256d)(a))
#include "tile_body.h"
#undef COX_NS
#undef COX_TARGET
#undef COX_BYTES
#undef COX_R
#undef COX_C
#undef COX_MADD_F
#undef COX_MADD_D

#define COX_NS avx512
#define COX_TARGET __attribute__((target("avx512f,fma")))
#define COX_BYTES 64
#define COX_R 4
#define COX_C 4
#define COX_MADD_F(d, a) (VF)_mm512_fmadd_ps((__m512)(d), (__m512)(d), (__m512)(a))
#define COX_MADD_D(d, a) (VD)_mm512_fmadd_pd((__m512d)(d), (__m512d)(d), (__m512d)(a))
#include "tile_body.h"
#undef COX_NS
#undef COX_TARGET
#undef COX_BYTES
#undef COX_R
#undef COX_C
#undef COX_MADD_F
#undef COX_MADD_D
#endif

constexpr const char* kNames[] = {"plain", "avx2", "avx512", "avx512_vnni", "amx_int8", "amx_emulated"};

int find_best_isa() {
#if COX_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return !__builtin_cpu_supports("avx512vnni") ? 2 : amx_works() ? 4 : 3;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

int best_isa() {
  static const int best = find_best_isa();
  return best;
}

int by_name(const std::string& name) {
  for (int i = 0; i <= best_isa(); ++i) {
    if (name == kNames[i]) return i;
  }
  if (name == kNames[kEmulatedTiles]) return kEmulatedTiles;
  std::string have;
  for (const auto& n : isa_available()) have += (have.empty() ? "" : ", ") + n;
  COX_CHECK(false, "cox_ops: no instruction set \"", name, "\" on this machine; available: ", have);
  return 0;
}

std::atomic<int> chosen{-1};

}  // namespace

int isa_level() {
  int i = chosen.load();
  if (i < 0) {
    const char* env = std::getenv("COX_ISA");
    i = env && *env ? by_name(env) : best_isa();
    chosen.store(i);
  }
  return i;
}

int simd_level() {
  const int level = isa_level();
  return level == kEmulatedTiles ? 0 : std::min(level, 2);
}

std::vector<std::string> isa_available() {
  return {kNames, kNames + best_isa() + 1};
}

std::string isa_chosen() {
  return kNames[isa_level()];
}

void isa_force(const std::string& name) {
  chosen.store(by_name(name));
}

template <>
tile_fn<float> pick_tile<float>() {
#if COX_X86
  if (simd_level() == 2) return &avx512::tile4x4<float, avx512::VF>;
  if (simd_level() == 1) return &avx2::tile4x4<float, avx2::VF>;
#endif
  return &plain::tile4x4<float, plain::VF>;
}

template <>
tile_fn<double> pick_tile<double>() {
#if COX_X86
  if (simd_level() == 2) return &avx512::tile4x4<double, avx512::VD>;
  if (simd_level() == 1) return &avx2::tile4x4<double, avx2::VD>;
#endif
  return &plain::tile4x4<double, plain::VD>;
}

}  // namespace cox::cpu
