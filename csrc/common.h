// Shared by every operator: dtype dispatch and one check_<op>() per operator, called by the CPU and the CUDA
// implementation alike, so that both refuse the same inputs with the same words (what was expected, what came).
#pragma once

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

namespace cox {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Args>
std::string words(const Args&... args) {
  std::ostringstream s;
  (void)(s << ... << args);
  return s.str();
}

// Reaches Python as a RuntimeError with this text alone: no file, no line, no "internal assert".
#define COX_CHECK(cond, ...)                              \
  do {                                                    \
    if (!(cond)) {                                        \
      throw std::runtime_error(::cox::words(__VA_ARGS__)); \
    }                                                     \
  } while (0)

inline const char* dtype_name(ScalarType t) {
  switch (t) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Long: return "int64";
    case ScalarType::Int: return "int32";
    case ScalarType::Bool: return "bool";
    default: return torch::headeronly::toString(t);
  }
}

inline std::string shape_of(const Tensor& t) {
  std::ostringstream s;
  s << "(";
  for (int64_t i = 0; i < t.dim(); ++i) {
    s << (i ? ", " : "") << t.size(i);
  }
  s << ")";
  return s.str();
}

inline bool is_float(ScalarType t) {
  return t == ScalarType::Float || t == ScalarType::Double || t == ScalarType::Half || t == ScalarType::BFloat16;
}

// Arithmetic is in float32 for float32, float16 and bfloat16, in float64 for float64.
template <class T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline ScalarType acc_dtype(ScalarType t) {
  return t == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// f(T{}) with T the C++ type of a floating dtype.
template <class F>
void for_dtype(ScalarType t, F&& f) {
  switch (t) {
    case ScalarType::Float: f(float{}); break;
    case ScalarType::Double: f(double{}); break;
    case ScalarType::Half: f(Half{}); break;
    case ScalarType::BFloat16: f(BFloat16{}); break;
    default: COX_CHECK(false, "cox_ops: no kernel for dtype ", dtype_name(t));
  }
}

template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
T* out(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

inline Tensor make(const Tensor& like, std::vector<int64_t> size, ScalarType dtype) {
  return torch::stable::new_empty(like, size, dtype);
}

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// ---------------------------------------------------------------- checks

inline void check_float(const char* op, const char* name, const Tensor& t) {
  COX_CHECK(is_float(t.scalar_type()), op, ": ", name, " must be float32, float64, float16 or bfloat16, got ",
            dtype_name(t.scalar_type()));
}

inline void check_same(const char* op, const char* an, const Tensor& a, const char* bn, const Tensor& b) {
  COX_CHECK(a.scalar_type() == b.scalar_type(), op, ": dtypes differ: ", an, " is ", dtype_name(a.scalar_type()),
            ", ", bn, " is ", dtype_name(b.scalar_type()));
  COX_CHECK(a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index(), op,
            ": devices differ: ", an, " and ", bn, " must lie on the same device");
}

inline void check_same_device(const char* op, const char* an, const Tensor& a, const char* bn, const Tensor& b) {
  COX_CHECK(a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index(), op,
            ": devices differ: ", an, " and ", bn, " must lie on the same device");
}

inline void check_pairwise_distances(const Tensor& x, const Tensor& y) {
  const char* op = "pairwise_distances";
  check_float(op, "x", x);
  check_same(op, "x", x, "y", y);
  COX_CHECK((x.dim() == 2 || x.dim() == 3) && x.dim() == y.dim(), op,
            ": expected x (M, D) and y (N, D), or x (B, M, D) and y (B, N, D), got x ", shape_of(x), " and y ",
            shape_of(y));
  const int64_t r = x.dim();
  COX_CHECK(x.size(r - 1) == y.size(r - 1), op, ": D differs: x has ", x.size(r - 1), ", y has ", y.size(r - 1));
  COX_CHECK(r == 2 || x.size(0) == y.size(0), op, ": batch differs: x has ", x.size(0), ", y has ", y.size(0));
}

inline void check_pairwise_distances_backward(const Tensor& grad, const Tensor& x, const Tensor& y,
                                              const Tensor& dist) {
  const char* op = "pairwise_distances_backward";
  check_pairwise_distances(x, y);
  check_same(op, "grad", grad, "x", x);
  check_same(op, "dist", dist, "x", x);
  const int64_t r = x.dim();
  for (const Tensor* t : {&grad, &dist}) {
    COX_CHECK(t->dim() == r && t->size(r - 2) == x.size(r - 2) && t->size(r - 1) == y.size(r - 2) &&
                  (r == 2 || t->size(0) == x.size(0)),
              op, ": grad and dist must have the shape of the distances of x ", shape_of(x), " and y ", shape_of(y),
              ", got ", shape_of(*t));
  }
}

inline void check_nearest_anchor(const Tensor& z, const Tensor& v, int64_t tile) {
  const char* op = "nearest_anchor";
  check_float(op, "z", z);
  check_same(op, "z", z, "v", v);
  COX_CHECK(z.dim() == 2, op, ": expected z (M, D), got ", shape_of(z));
  COX_CHECK(v.dim() == 3, op, ": expected v (K, N, D), got ", shape_of(v));
  COX_CHECK(v.size(0) >= 1, op, ": expected at least one mapping in v (K, N, D), got K = 0");
  COX_CHECK(z.size(1) == v.size(2), op, ": D differs: z has ", z.size(1), ", v has ", v.size(2));
  COX_CHECK(tile >= 0, op, ": expected tile >= 0, got ", tile);
}

// What nearest_anchor makes of its checked `tile`: more rows than there are change nothing but memory. Odd stays odd.
inline int64_t tile_within(int64_t tile, const Tensor& z, const Tensor& v) {
  const int64_t rows = z.size(0) > v.size(1) ? z.size(0) : v.size(1), most = rows + 2 + rows % 2;
  return tile <= most ? tile : most + tile % 2;
}

inline void check_top_anchors(const Tensor& score, int64_t t, const std::optional<Tensor>& classes,
                              std::optional<int64_t> quota, const std::optional<Tensor>& mask) {
  const char* op = "top_anchors";
  check_float(op, "score", score);
  COX_CHECK(score.dim() == 1, op, ": expected score (M,), got ", shape_of(score));
  COX_CHECK(t >= 0, op, ": expected t >= 0, got ", t);
  COX_CHECK(!quota || classes, op, ": quota needs classes");
  COX_CHECK(!quota || *quota >= 0, op, ": expected quota >= 0, got ", *quota);
  if (classes) {
    COX_CHECK(classes->scalar_type() == ScalarType::Long, op, ": classes must be int64, got ",
              dtype_name(classes->scalar_type()));
    COX_CHECK(classes->dim() == 1 && classes->size(0) == score.size(0), op, ": expected classes (", score.size(0),
              ",) like score, got ", shape_of(*classes));
    check_same_device(op, "score", score, "classes", *classes);
  }
  if (mask) {
    COX_CHECK(mask->scalar_type() == ScalarType::Bool, op, ": mask must be bool, got ",
              dtype_name(mask->scalar_type()));
    COX_CHECK(mask->dim() == 1 && mask->size(0) == score.size(0), op, ": expected mask (", score.size(0),
              ",) like score, got ", shape_of(*mask));
    check_same_device(op, "score", score, "mask", *mask);
  }
}

inline void check_modality_agreement(const Tensor& logits) {
  const char* op = "modality_agreement";
  check_float(op, "logits", logits);
  COX_CHECK(logits.dim() == 3, op, ": expected logits (K, M, C), got ", shape_of(logits));
  COX_CHECK(logits.size(0) >= 1 && logits.size(2) >= 1, op,
            ": expected at least one head and one class in logits (K, M, C), got ", shape_of(logits));
}

inline void check_heads_agreement(const Tensor& z, const Tensor& weight, const Tensor& bias) {
  const char* op = "heads_agreement";
  check_float(op, "z", z);
  check_same(op, "z", z, "weight", weight);
  check_same(op, "z", z, "bias", bias);
  COX_CHECK(z.dim() == 2, op, ": expected z (M, D), got ", shape_of(z));
  COX_CHECK(weight.dim() == 3, op, ": expected weight (K, C, D), got ", shape_of(weight));
  COX_CHECK(weight.size(0) >= 1 && weight.size(1) >= 1, op,
            ": expected at least one head and one class in weight (K, C, D), got ", shape_of(weight));
  COX_CHECK(z.size(1) == weight.size(2), op, ": D differs: z has ", z.size(1), ", weight has ", weight.size(2));
  COX_CHECK(bias.dim() == 2 && bias.size(0) == weight.size(0) && bias.size(1) == weight.size(1), op,
            ": expected bias (", weight.size(0), ", ", weight.size(1), ") like weight's heads and classes, got ",
            shape_of(bias));
}

inline void check_soft_correspondence(const Tensor& z, const Tensor& means, const Tensor& x, const Tensor& classes,
                                      const Tensor& bias, const std::optional<Tensor>& labels, double freedom) {
  const char* op = "soft_correspondence";
  check_float(op, "z", z);
  check_same(op, "z", z, "means", means);
  check_same(op, "z", z, "x", x);
  check_same(op, "z", z, "bias", bias);
  COX_CHECK(z.dim() == 2 && means.dim() == 2, op, ": expected z (M, d) and means (N, d), got z ", shape_of(z),
            " and means ", shape_of(means));
  COX_CHECK(z.size(1) == means.size(1), op, ": d differs: z has ", z.size(1), ", means has ", means.size(1));
  COX_CHECK(means.size(0) >= 1, op, ": expected at least one item in means (N, d), got N = 0");
  COX_CHECK(x.dim() == 2 && x.size(0) == means.size(0), op, ": expected x (", means.size(0), ", p) like means, got ",
            shape_of(x));
  COX_CHECK(bias.dim() == 1 && bias.size(0) >= 1 && bias.size(0) < (int64_t(1) << 31), op,
            ": expected bias (C,) of at least one class, got ", shape_of(bias));
  const auto check_classes = [op, &z](const char* name, const Tensor& t, int64_t n) {
    COX_CHECK(t.scalar_type() == ScalarType::Long, op, ": ", name, " must be int64, got ", dtype_name(t.scalar_type()));
    COX_CHECK(t.dim() == 1 && t.size(0) == n, op, ": expected ", name, " (", n, ",), got ", shape_of(t));
    check_same_device(op, "z", z, name, t);
  };
  check_classes("classes", classes, means.size(0));
  if (labels) {
    check_classes("labels", *labels, z.size(0));
  }
  COX_CHECK(freedom > 0, op, ": expected freedom > 0, got ", freedom);
}

inline void check_mmd(const Tensor& x, const Tensor& y, const Tensor& bandwidths) {
  const char* op = "mmd";
  check_float(op, "x", x);
  check_same(op, "x", x, "y", y);
  COX_CHECK(x.dim() == 2 && y.dim() == 2, op, ": expected x (N, D) and y (M, D), got x ", shape_of(x), " and y ",
            shape_of(y));
  COX_CHECK(x.size(1) == y.size(1), op, ": D differs: x has ", x.size(1), ", y has ", y.size(1));
  COX_CHECK(x.size(0) >= 1 && y.size(0) >= 1, op, ": expected at least one row in each sample, got x ", shape_of(x),
            " and y ", shape_of(y));
  COX_CHECK(bandwidths.scalar_type() == ScalarType::Double && bandwidths.dim() == 1 && bandwidths.size(0) >= 1, op,
            ": expected bandwidths as a float64 vector of at least one value, got ",
            dtype_name(bandwidths.scalar_type()), " ", shape_of(bandwidths));
  check_same_device(op, "x", x, "bandwidths", bandwidths);
}

inline void check_mmd_backward(const Tensor& grad, const Tensor& x, const Tensor& y, const Tensor& bandwidths) {
  check_mmd(x, y, bandwidths);
  COX_CHECK(grad.dim() == 0 && grad.scalar_type() == acc_dtype(x.scalar_type()),
            "mmd_backward: expected grad as a ", dtype_name(acc_dtype(x.scalar_type())), " scalar, got ",
            dtype_name(grad.scalar_type()), " ", shape_of(grad));
  check_same_device("mmd_backward", "grad", grad, "x", x);
}

}  // namespace cox
