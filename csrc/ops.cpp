// The operators' schemas, each written once, and the extension module itself: `import cox_ops._C` runs the static
// registrations (schemas here, CPU implementations beside each kernel) and offers the report on the build.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "common.h"
#include "cpu/tile.h"

#define COX_TEXT_(...) #__VA_ARGS__
#define COX_TEXT(...) COX_TEXT_(__VA_ARGS__)

#ifndef COX_BUILD_TORCH
#define COX_BUILD_TORCH unknown
#endif
#ifndef COX_BUILD_CUDA
#define COX_BUILD_CUDA none
#endif

STABLE_TORCH_LIBRARY(cox_ops, m) {
  m.def("pairwise_distances(Tensor x, Tensor y, bool squared=False) -> Tensor");
  m.def(
      "pairwise_distances_backward(Tensor grad, Tensor x, Tensor y, Tensor dist, bool squared)"
      " -> (Tensor gx, Tensor gy)");
  m.def("nearest_anchor(Tensor z, Tensor v, int tile=0) -> (Tensor score, Tensor index)");
  m.def(
      "top_anchors(Tensor score, int t, *, bool largest=False, Tensor? classes=None, int? quota=None,"
      " Tensor? mask=None) -> Tensor");
  m.def("modality_agreement(Tensor logits) -> (Tensor confidence, Tensor mask, Tensor label)");
  m.def("heads_agreement(Tensor z, Tensor weight, Tensor bias) -> (Tensor confidence, Tensor mask, Tensor label)");
  m.def(
      "soft_correspondence(Tensor z, Tensor means, Tensor x, Tensor classes, Tensor bias, Tensor? labels=None, *,"
      " float freedom) -> (Tensor posterior, Tensor expected, Tensor margin, Tensor evidence, Tensor use, Tensor total,"
      " Tensor scatter)");
  m.def("mmd(Tensor x, Tensor y, Tensor bandwidths) -> Tensor");
  m.def("mmd_backward(Tensor grad, Tensor x, Tensor y, Tensor bandwidths) -> (Tensor gx, Tensor gy)");
}

namespace {

pybind11::dict build_info() {
  pybind11::dict d;
  d["torch_at_build"] = COX_TEXT(COX_BUILD_TORCH);
  d["abi_target"] = "stable libtorch ABI, torch >= " + std::to_string((TORCH_TARGET_VERSION >> 56) & 0xff) + "." +
                    std::to_string((TORCH_TARGET_VERSION >> 48) & 0xff);
#if defined(__clang__)
  d["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  d["compiler"] = "gcc " __VERSION__;
#else
  d["compiler"] = "unknown";
#endif
  // What the compiler took for granted everywhere: more than "plain" after -march=native, which no wheel may have.
#if defined(__AVX512F__)
  d["isa_baseline"] = "avx512";
#elif defined(__AVX2__)
  d["isa_baseline"] = "avx2";
#elif defined(__AVX__)
  d["isa_baseline"] = "avx";
#else
  d["isa_baseline"] = "plain";
#endif
  d["isa_available"] = cox::cpu::isa_available();
  d["isa_chosen"] = cox::cpu::isa_chosen();
  d["bf16"] = cox::cpu::bf16_chosen();
  d["cuda_archs"] = COX_TEXT(COX_BUILD_CUDA);
#ifdef _OPENMP
  d["openmp"] = _OPENMP;
#else
  d["openmp"] = 0;
#endif
  d["threads"] = torch::stable::get_num_threads();
  return d;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU operators of cox_ops (registered on import) and the report on their build";
  m.def("build_info", &build_info, "What this module was built with and what it runs on");
  m.def("force_isa", &cox::cpu::isa_force, pybind11::arg("name"),
        "Use this instruction set from now on: one of build_info()['isa_available']");
}
