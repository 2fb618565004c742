// Included by screen.cpp once for AMX's tiles and once for their emulation. Expects COX_NS with its struct Tiles and COX_TARGET.
//
// A tile of queries is [kQuery][kDeep] units, one of the bank [kDeep][16] units as they lie in a panel, one of results
// [kQuery][16]. Both bytes are signed: init is 0.
namespace COX_NS {

COX_TARGET void dots8(const int32_t* q, const int32_t* b, int64_t steps, const int32_t*, int32_t* out) {
  Tiles t;
  t.clear();
  for (int64_t s = 0; s < steps; s += kDeep) {
    t.queries(q + s, 4 * steps);
    t.bank(b + s * kBank, 4 * kBank);
    t.multiply();
  }
  t.store(out, 4 * kBank);
}

}  // namespace COX_NS
