"""The banks of stage 1: features of the IM modalities by a pretrained perceptor, or by encoders trained here."""

import torch

from cox_oom import files, perceptors
from cox_oom.data import ahead
from cox_oom.data.rows import check_items, columns, media_counts, observed, silence
from cox_oom.files import UserError
from cox_oom.perceptors import bind, embed, weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def weights_digest(name, role, given, path):
    """Digest of the files that a perceptor reads for a role, `given` what --weights says; None where the bank `path`
    is there and the weights are not."""
    try:
        found = perceptors.module(name).weight_files([role], perceptors.model_of(name, given))
    except UserError:
        if path.exists() and not given:
            return None
        raise
    return files.digest({f: weights.sha256(p) for f, p in found.items()})


def target_of(choice, frozen):
    """The modality among `frozen` to whose features encoders trained here are bound: the image's (ImageBind) or the
    language's (LanguageBind), if there is one. choice: {modality: (perceptor, role)}."""
    prefer = [getattr(perceptors.module(choice[m][0]), "BIND_TO", "image") for m in frozen]
    return next((m for m, role in zip(frozen, prefer) if choice[m][1] == role), frozen[0])


def frozen(args, place, data, modality, name, role, own):
    """The bank of a modality by the pretrained perceptor `name` in a role, with its `own` options; made where it is
    not there."""
    path = place.bank(modality)
    known = {"perceptor": name, "role": role, "dtype": args.dtype, **own, **silence(args, data, modality)}
    made_from = {"preprocessing": perceptors.module(name).PREPROCESSING}
    if digest := weights_digest(name, role, args.weights, path):
        made_from["file of weights"] = digest
    parts = path.with_suffix(".parts")
    if args.force:
        embed.clear(parts)
    if not files.finished(path, known, made_from, data.fingerprint, args.force):
        print(f"{name}: {modality} as {role} ({args.dtype}, {args.device}, {args.workers} worker processes)")
        model = perceptors.module(name).load(
            [role], weights=perceptors.model_of(name, args.weights), device=args.device, dtype=DTYPES[args.dtype], **own
        )
        complain = ahead.Complaints(data, modality, args.on_error, args.on_silence)
        z, used = embed.features(
            model,
            role,
            data,
            modality,
            observed(data, modality),
            parts,
            batch_size=args.batch_size,
            workers=args.workers,
            device=args.device,
            known={**known, **made_from},
            complain=complain,
        )
        check_items(args, data, modality, used)
        files.save(
            path,
            {"features": z, **columns(data, used)},
            stage="extract_features",
            data=data.name,
            fingerprint=data.fingerprint,
            args=known,
            made_from=made_from,
            source=data.source,
            weights=model.weights,
            media=complain.finish(place.media(modality)),
            dated=False,
        )
    embed.clear(parts)
    bank = files.load(path)
    print(f"  {modality}: features {tuple(bank['features'].shape)}{media_counts(place, modality, bank)}")
    return bank


def trained(args, place, data, inputs, target, bank):
    """The banks of the encoders trained here, on `inputs` {modality: file}: together (bind), or against the frozen
    features in `bank` of the modality `target`."""
    settings = {
        "im": sorted(inputs),
        "epochs": args.bind_epochs,
        "width": args.bind_width,
        "dim": args.bind_dim,
        "seed": args.seed,
        "pair_by_class": args.pair_by_class,
    }
    made_from = {f"inputs/{m}": file["meta"]["digest"] for m, file in inputs.items()}
    if target:
        settings |= {"dim": bank["features"].shape[1], "target": target}
        made_from[f"banks/{target}"] = bank["meta"]["digest"]
    path = lambda m: place.bank(m, trained=True)
    if all([files.finished(path(m), settings, made_from, data.fingerprint, args.force) for m in inputs]):
        return
    print(
        f"training {'encoders' if target else 'bind'} on {', '.join(inputs)}"
        f"{f' against the features of {target}' if target else ''} "
        f"(seed {args.seed}, {args.bind_epochs} epochs, {args.device})"
    )
    encoders, by_class = bind.train(
        inputs,
        frozen=target and {target: bank},
        dim=settings["dim"],
        width=args.bind_width,
        epochs=args.bind_epochs,
        seed=args.seed,
        device=args.device,
        pair_by_class=args.pair_by_class,
    )
    if by_class:
        print(f"paired by class, as asked (--pair-by-class): {', '.join(by_class)} share no row with another modality")
    for m, file in inputs.items():
        files.save(
            path(m),
            {
                "features": bind.features(encoders[m], file, device=args.device),
                **{k: file[k] for k in ("ids", "class_names", "labels", "split")},
                "encoder": {k: v.cpu() for k, v in encoders[m].state_dict().items()},
            },
            stage="extract_features",
            data=data.name,
            fingerprint=data.fingerprint,
            args=settings,
            made_from=made_from,
            perceptor="bind",
            paired_by_class=by_class,
            dated=False,
        )
