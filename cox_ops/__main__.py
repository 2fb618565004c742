"""`python -m cox_ops`: what the operators were built with and what they run on here."""

import torch

import cox_ops


def report() -> str:
    info = cox_ops._C.build_info()
    rows = [
        ("version", cox_ops.__version__),
        ("torch", f"{info['torch_at_build']} at build, {torch.__version__} now"),
        ("ABI", info["abi_target"]),
        ("compiler", info["compiler"]),
        (
            "instruction sets",
            f"{', '.join(info['isa_available'])} available, {info['isa_chosen']} chosen; "
            f"needed: {info['isa_baseline']}; products of bfloat16: {info['bf16']}",
        ),
        ("OpenMP", info["openmp"] or "none: kernels run on one thread"),
        ("threads", info["threads"]),
        ("CUDA architectures", info["cuda_archs"]),
        ("CUDA library", cox_ops.cuda_library.name if cox_ops.cuda_library else "none"),
    ]
    names = [n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("cox_ops::")]
    for name in sorted(names):
        have = [
            device
            for device in ("CPU", "CUDA")
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"cox_ops::{name}", device)
        ]
        rows.append((name, ", ".join(have)))
    return "\n".join(f"{name + ':':31}{value}" for name, value in rows)


if __name__ == "__main__":
    print(report())
