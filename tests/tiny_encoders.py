"""Encoders of transformers at tiny sizes with their processors, written by save_pretrained: the format of the hub."""

import json

import tiny_hf
import transformers

WIDTH = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**WIDTH, "image_size": 32, "patch_size": 8}
TEXT = {**WIDTH, "vocab_size": 8, "max_position_embeddings": 64, "pad_token_id": 0}
SQUARE = {"height": 32, "width": 32}
DINOV3 = {
    "image_processor_type": "DINOv3ViTImageProcessor",
    "size": SQUARE,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
    "rescale_factor": 1 / 255,
}


def vit():
    return transformers.ViTModel(transformers.ViTConfig(**VISION)), transformers.ViTImageProcessorPil(size=SQUARE)


def vit_head():
    """A classifier, as most ViTs are published: its file has no pooler."""
    config = transformers.ViTConfig(**VISION, num_labels=3)
    return transformers.ViTForImageClassification(config), transformers.ViTImageProcessorPil(size=SQUARE)


def dinov2():
    images = transformers.BitImageProcessorPil(size={"shortest_edge": 40}, crop_size=SQUARE, do_center_crop=True)
    config = transformers.Dinov2Config(**{**VISION, "patch_size": 8}, mlp_ratio=2)
    return transformers.Dinov2Model(config), images


def dinov3():
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**VISION, num_register_tokens=2)), DINOV3


def siglip_vision():
    model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION))
    return model, transformers.SiglipImageProcessorPil(size=SQUARE)


def resnet():
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return transformers.ResNetModel(config), transformers.ViTImageProcessorPil(size=SQUARE)


def bert():
    return transformers.BertModel(transformers.BertConfig(**TEXT)), tiny_hf.words(64)


def wav2vec2():
    conv = {"conv_dim": [8, 8, 8], "conv_kernel": [10, 8, 4], "conv_stride": [10, 8, 4], "num_feat_extract_layers": 3}
    position = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    config = transformers.Wav2Vec2Config(**WIDTH, **conv, **position, vocab_size=8)
    return transformers.Wav2Vec2ForCTC(config), transformers.Wav2Vec2FeatureExtractor()


def whisper():
    layers = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    ffn = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    tokens = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    config = transformers.WhisperConfig(
        **layers, **ffn, **tokens, d_model=16, vocab_size=8, num_mel_bins=8, max_source_positions=200
    )
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=4)
    return transformers.WhisperForConditionalGeneration(config), extractor


def ast():
    config = transformers.ASTConfig(**WIDTH, max_length=104, num_mel_bins=16, patch_size=8, frequency_stride=8)
    return transformers.ASTModel(config), transformers.ASTFeatureExtractor(num_mel_bins=16, max_length=104)


def videomae():
    config = transformers.VideoMAEConfig(**VISION, num_frames=4)
    images = transformers.VideoMAEImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)
    return transformers.VideoMAEModel(config), images


def write(folder, kind):
    """A tiny encoder of this kind in `folder`; returns (model, its processor)."""
    model, processor = globals()[kind]()
    tiny_hf.fill(model).save_pretrained(folder)
    if isinstance(processor, dict):
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    else:
        processor.save_pretrained(folder)
    return model, processor


def sentences(folder, pooling, steps=("Transformer", "Pooling", "Normalize"), longest=9):
    """bert as sentence-transformers writes it. pooling: what 1_Pooling/config.json says beside the dimension."""
    model, processor = write(folder, "bert")
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": i, "path": f"{i}_{k}" if i else "", "type": f"sentence_transformers.models.{k}"}
                for i, k in enumerate(steps)
            ]
        )
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": longest}))
    return model, processor
