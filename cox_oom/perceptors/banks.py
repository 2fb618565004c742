"""The banks of stage 1: features of the IM modalities by a pretrained perceptor, or by encoders trained here."""

import torch

from cox_oom import files, perceptors, ranks, shards
from cox_oom.data import ahead, grown
from cox_oom.data.rows import by_another, check_items, columns, media_counts, observed, silence
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
    not there, extended where the data have grown. With args.share, (k, n): part k of n of it alone, and gives None."""
    path = place.bank(modality)
    known = {"perceptor": name, "role": role, "dtype": args.dtype, **own, **silence(args, data, modality)}
    made_from = {"preprocessing": perceptors.module(name).PREPROCESSING}
    if digest := weights_digest(name, role, args.weights, path):
        made_from["file of weights"] = digest
    parts = path.with_suffix(".parts")
    if args.force and not args.share:
        ranks.first(embed.clear, parts)
    old = grown.kept(args, path, data, modality, known, made_from)
    lacking = old or not files.finished(path, known, made_from, data.fingerprint, args.force)
    ranks.wait()  # all have looked before one writes
    if lacking:
        with by_another(args, path, data):
            extend(args, place, data, modality, (name, role, own), (known, made_from), old)
    ranks.wait()
    if args.share:
        return None
    embed.clear(parts)
    bank = files.load(path)
    shards.tidy(path)
    print(f"  {modality}: features {tuple(bank['features'].shape)}{media_counts(place, modality, bank)}")
    return bank


def extend(args, place, data, modality, perceptor, made, old):
    """Write the bank of a modality: what is new of its rows is embedded, the rest comes from the Kept `old`.

    perceptor: name, role and options; made: the facts that it is made with, and from."""
    (name, role, own), (known, made_from), path = perceptor, made, place.bank(modality)
    complain = ahead.Complaints(data, modality, args.on_error, args.on_silence)
    complain.recall(place.media(modality), old.places)
    rows = observed(data, modality)
    fresh, parts, weights_of = [r for r in rows if r not in old.places], (), old.file.get("meta", {}).get("weights")
    if fresh:
        print(f"{name}: {modality} as {role} ({args.dtype}, {args.device}, {args.workers} worker processes)")
        model = perceptors.module(name).load(
            [role], weights=perceptors.model_of(name, args.weights), device=args.device, dtype=DTYPES[args.dtype], **own
        )
        parts = embed.features(
            model,
            role,
            data,
            modality,
            fresh,
            path.with_suffix(".parts"),
            batch_size=args.batch_size,
            workers=args.workers,
            device=args.device,
            known={**known, **made_from},
            complain=complain,
            share=args.share,
        )
        weights_of = model.weights
    if ranks.rank or args.share:
        return
    features, used = joined(path, data, rows, parts, old)
    check_items(args, data, modality, used)
    save(
        path,
        {**features, **columns(data, used)},
        data=data.name,
        fingerprint=data.fingerprint,
        args=known,
        made_from={**old.file.get("meta", {}).get("made_from", {}), **made_from},
        source=data.source,
        weights=weights_of,
        media=complain.finish(place.media(modality)),
        **grown.marks(data, modality, used),
    )


def joined(path, data, rows, parts, old):
    """({"features": (n, d)}, or shards where the rows are many; the rows [n]) of those that are in the parts, in
    order, and in the Kept `old`."""
    new = ((row, z) for part in parts for row, z in zip(part["rows"], part["features"]))
    waiting, units, width = next(new, None), shards.split(rows, shards.ITEMS), 1
    used: list[int] = []
    names: list[str] = []
    sizes: list[int] = []
    for k, unit in enumerate(units):
        here = []
        for row in unit:
            if row in old.places:
                here.append((row, old.file["features"][old.places[row]]))
            elif waiting and waiting[0] == row:
                here.append(waiting)
                waiting = next(new, None)
        if here:
            z = torch.stack([z for _, z in here])
            used += [row for row, _ in here]
            width, sizes = z.shape[1], [*sizes, len(z)]
            if len(units) == 1:
                return {"features": z}, used
            names.append(shards.write(path, k, {"features": z}, {}, data.name))
    return {"shards": shards.entry("features", names, sizes, [width], torch.float32)}, used


def save(path, bank, **facts):
    """Write a bank, or its index where its features lie in shards."""
    items = files.digest({k: v for k, v in bank.items() if k not in ("labels", "class_names", "encoder")})
    files.save(path, bank, stage="extract_features", dated=False, items=items, **facts)


def trained(args, place, data, inputs, target, bank):
    """The banks of the encoders trained here, on `inputs` {modality: file}: together (bind), or against the frozen
    features in `bank` of the modality `target`. Where the data have grown all are trained anew; where labels alone
    changed, which the training does not see, they are kept."""
    settings = {
        "im": sorted(inputs),
        "epochs": args.bind_epochs,
        "width": args.bind_width,
        "dim": args.bind_dim,
        "seed": args.seed,
        "pair_by_class": args.pair_by_class,
    }
    made_from = {f"inputs/{m}": file["meta"]["digest"] for m, file in inputs.items()}
    items = {f"inputs/{m}": file["meta"].get("items") for m, file in inputs.items()}
    if target:
        settings |= {"dim": bank["features"].shape[1], "target": target}
        made_from[f"banks/{target}"] = bank["meta"]["digest"]
        items[f"banks/{target}"] = bank["meta"].get("items")
    path = lambda m: place.bank(m, trained=True)
    facts = {"data": data.name, "fingerprint": data.fingerprint, "args": settings, "made_from": made_from}
    facts |= {"perceptor": "bind", "seen": items}
    if old := before(args, data, settings, {m: path(m) for m in inputs}):
        seen = [b["meta"].get("seen") for b in old.values()]
        if not args.pair_by_class and None not in items.values() and all(s == items for s in seen):
            print(f"  {', '.join(inputs)}: banks kept, since their training saw no label")
            for m, b in old.items():
                kept = {k: b[k] for k in ("features", "encoder", "shards") if k in b}
                kept.pop("features" if "shards" in kept else "", None)
                save(path(m), {**kept, **labelled(inputs[m])}, paired_by_class=b["meta"]["paired_by_class"], **facts)
            return
        print(f"  {', '.join(inputs)}: the data have changed, so these encoders are trained anew")
    elif all([files.finished(path(m), settings, made_from, data.fingerprint, args.force) for m in inputs]):
        for m in inputs:
            shards.tidy(path(m))
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
        z = bind.features(encoders[m], file, device=args.device)
        features, _ = joined(path(m), data, range(len(z)), [{"rows": range(len(z)), "features": z}], grown.Kept())
        encoder = {"encoder": {k: v.cpu() for k, v in encoders[m].state_dict().items()}}
        save(path(m), {**features, **labelled(file), **encoder}, paired_by_class=by_class, **facts)
        shards.tidy(path(m))


def labelled(file):
    """What a bank says of its rows, as their inputs do."""
    return {k: file[k] for k in ("ids", "class_names", "labels", "split")}


def before(args, data, settings, paths):
    """{modality: bank} where all are there, made with these settings, and one at least before the data changed."""
    if args.force or not all(path.exists() for path in paths.values()):
        return {}
    banks = {m: files.load(path) for m, path in paths.items()}
    if all(bank["meta"]["fingerprint"] == data.fingerprint for bank in banks.values()):
        return {}
    for m, bank in banks.items():
        files.same_args(paths[m], bank["meta"], settings)
    return banks
