"""Models of transformers at tiny sizes with their processors, written by save_pretrained: the format of the hub."""

import json
import math

import torch
import transformers
from tiny_languagebind import vocabulary
from tiny_weights import draw

VOCABULARY = 520
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TEXT, "image_size": 32, "patch_size": 8}


def fill(model):
    """Every parameter by tiny_weights.draw, so that a model is the same everywhere; eval mode."""
    with torch.no_grad():
        for key, p in model.named_parameters():
            p.copy_(draw(key, p.shape))
    return model.eval()


def byte_pairs(folder, kind, **kwargs):
    vocabulary(folder, VOCABULARY)
    return kind(str(folder / "vocab.json"), str(folder / "merges.txt"), **kwargs)


def square_images():
    return transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def words(longest, more=(), **kwargs):
    """A tokenizer of the general class: some words, one unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    known = ["<pad>", "<eos>", "<unk>", "the", "dog", "and", "a", "sings", *more]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=longest,
        **kwargs,
    )


def write(folder, kind):
    """A tiny model of this kind in `folder`; returns (model, its processors {name: processor})."""
    folder.mkdir(parents=True)
    made = {
        "clip": clip,
        "siglip": siglip,
        "siglip2": siglip,
        "clap": clap,
        "clap_fused": clap,
        "x_clip": x_clip,
        "pe_audio": pe_audio,
        "embedding_gemma2": embedding_gemma2,
    }[kind]
    model, parts = made(folder, kind)
    fill(model).save_pretrained(folder)
    for part in parts.values():
        part.save_pretrained(folder)
    if {"images", "audio"} <= parts.keys():  # of one name: put into one file, as a processor of several does
        (folder / "preprocessor_config.json").unlink()
        (folder / "processor_config.json").write_text(
            json.dumps(
                {
                    "image_processor": json.loads(parts["images"].to_json_string()),
                    "feature_extractor": json.loads(parts["audio"].to_json_string()),
                }
            )
        )
    return model, parts


def clip(folder, kind):
    text = {
        **TEXT,
        "vocab_size": VOCABULARY,
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
        "pad_token_id": VOCABULARY - 1,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)
    tokenizer = byte_pairs(folder, transformers.CLIPTokenizer)
    return transformers.CLIPModel(config), {"tokenizer": tokenizer, "images": square_images()}


def siglip(folder, kind):
    text = {
        **TEXT,
        "vocab_size": 8,
        "max_position_embeddings": 64,
        "projection_size": 16,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 1,
    }
    if kind == "siglip2":  # the variant that keeps an image's proportions, up to 16 patches
        config = transformers.Siglip2Config(
            text_config=text, vision_config={**TEXT, "patch_size": 8, "num_patches": 16}
        )
        images = transformers.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
        known = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "d", "o", "g"]
        tokenizer = transformers.Siglip2Tokenizer(
            {w: i for i, w in enumerate(known)}, model_max_length=64, padding_side="right"
        )
        return transformers.Siglip2Model(config), {"tokenizer": tokenizer, "images": images}
    config = transformers.SiglipConfig(text_config=text, vision_config=VISION)
    images = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return transformers.SiglipModel(config), {"tokenizer": words(64), "images": images}


def clap(folder, kind):
    text = {
        **TEXT,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 80,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    fused = kind == "clap_fused"
    audio = {
        "spec_size": 64,
        "num_mel_bins": 16,
        "patch_stride": [4, 4],
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "window_size": 4,
        "projection_dim": 8,
        "enable_fusion": fused,
        "fusion_type": "aff_2d" if fused else None,
    }
    config = transformers.ClapConfig(text_config={**text, "projection_dim": 8}, audio_config=audio, projection_dim=8)
    extractor = transformers.ClapFeatureExtractor(
        feature_size=16, max_length_s=2, truncation="fusion" if fused else "rand_trunc"
    )
    tokenizer = byte_pairs(
        folder,
        transformers.RobertaTokenizer,
        model_max_length=77,
        bos_token="!",
        pad_token='"',
        eos_token="#",
        cls_token="!",
        sep_token="#",
        unk_token="$",
        mask_token="%",
    )
    return transformers.ClapModel(config), {"tokenizer": tokenizer, "audio": extractor}


def x_clip(folder, kind):
    text = {
        **TEXT,
        "vocab_size": VOCABULARY,
        "bos_token_id": VOCABULARY - 2,
        "eos_token_id": VOCABULARY - 1,
        "pad_token_id": VOCABULARY - 1,
    }
    vision = {
        **VISION,
        "num_frames": 4,
        "mit_hidden_size": 16,
        "mit_intermediate_size": 32,
        "mit_num_hidden_layers": 1,
        "mit_num_attention_heads": 2,
    }
    config = transformers.XCLIPConfig(
        text_config=text, vision_config=vision, projection_dim=16, prompt_layers=1, prompt_num_attention_heads=2
    )
    tokenizer = byte_pairs(folder, transformers.CLIPTokenizer)
    return transformers.XCLIPModel(config), {"tokenizer": tokenizer, "images": square_images()}


def pe_audio(folder, kind):
    dac = {
        "model_type": "dac",
        "encoder_hidden_size": 4,
        "downsampling_ratios": [4, 8, 10, 6],
        "hidden_size": 64,
        "codebook_dim": 8,
    }
    audio = {**TEXT, "dac_config": dac, "head_dim": 8}
    text = {
        **TEXT,
        "model_type": "modernbert",
        "vocab_size": 8,
        "pad_token_id": 0,
        "cls_token_id": 0,
        "sep_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    config = transformers.PeAudioConfig(text_config=text, audio_config=audio)
    extractor = transformers.PeAudioFeatureExtractor(hop_length=1920)
    return transformers.PeAudioModel(config), {"tokenizer": words(64), "audio": extractor}


def embedding_gemma2(folder, kind):
    names = ["image_token", "boi_token", "eoi_token", "audio_token", "boa_token", "eoa_token"]
    tokens = [f"<{n}>" for n in names]
    ids = dict(
        zip(
            ("image_token_id", "boi_token_id", "eoi_token_id", "audio_token_id", "boa_token_id", "eoa_token_index"),
            range(8, 14),
        ),
        video_token_id=15,
    )
    text = {
        **TEXT,
        "vocab_size": 16,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "global_head_dim": 8,
        "embedding_dim": 12,
        "hidden_size_per_layer_input": 8,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": 1,
    }
    vision = {
        **TEXT,
        "model_type": "gemma4_vision",
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "patch_size": 4,
        "pooling_kernel_size": 2,
    }
    audio = {"model_type": "gemma4_audio", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.EmbeddingGemma2Config(text_config=text, vision_config=vision, audio_config=audio, **ids)
    return transformers.EmbeddingGemma2Model(config), {
        "tokenizer": words(4096, tokens, extra_special_tokens=dict(zip(names, tokens))),
        "images": transformers.Gemma4ImageProcessorPil(patch_size=4, pooling_kernel_size=2, max_soft_tokens=70),
        "audio": transformers.Gemma4AudioFeatureExtractor(),
    }


def tone(seconds, rate=16000):
    t = torch.arange(int(seconds * rate)) / rate
    return 0.4 * torch.sin(2 * math.pi * (300 + 400 * t) * t) + 0.05 * draw("noise", t.shape)
