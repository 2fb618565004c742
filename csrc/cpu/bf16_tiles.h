// Included by bf16.cpp once for AMX's tiles and once for their emulation. Expects COX_NS with its struct Pairs and COX_TARGET.
//
// A tile of readings is [kStep][kBf16Units] units, one of items [kBf16Units][16], one of results [kStep][16]. Pairs holds
// kAcross of the last two kinds.
namespace COX_NS {

COX_TARGET void products(const uint32_t* z, const uint32_t* items, int64_t units, int64_t cols, float* out) {
  Pairs t;
  for (int64_t c = 0; c < cols; c += 16 * kAcross) {
    t.clear();
    for (int64_t u = 0; u < units; u += kBf16Units) {
      t.readings(z + u, 4 * units);
      t.items(items + u * kItems + c, 4 * kItems);
      t.multiply();
    }
    t.store(out + c, 4 * kItems);
  }
}

}  // namespace COX_NS
