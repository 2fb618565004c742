// What modality_agreement and heads_agreement share: the verdict on rows of logits in float32.
#pragma once

#include "tile.h"

namespace cox::cpu {

template <class A>
struct Logits {  // of K heads; the C logits of a head lie side by side
  const A* first;
  int64_t K, C, head_stride, row_stride;
  const A* bias;  // (K, C), added to every row; or null
};

template <class A>
struct Verdict {  // one entry per row
  bool* mask;
  int64_t* label;
  A* confidence;

  Verdict from(int64_t row) const { return {mask + row, label + row, confidence + row}; }
};

// Verdict of rows [0, rows). A row's result is a function of its logits alone.
template <class A>
using agree_fn = void (*)(const Logits<A>& logits, int64_t rows, const Verdict<A>& to);
template <class A>
agree_fn<A> pick_agree();  // for the chosen instruction set

struct Outputs {
  Tensor confidence, mask, label;

  Outputs(const Tensor& like, int64_t rows)
      : confidence(make(like, {rows}, acc_dtype(like.scalar_type()))),
        mask(make(like, {rows}, ScalarType::Bool)),
        label(make(like, {rows}, ScalarType::Long)) {}
  template <class A>
  Verdict<A> verdict() const {
    return {out<bool>(mask), out<int64_t>(label), out<A>(confidence)};
  }
};

}  // namespace cox::cpu
