#!/usr/bin/env python3
"""Makes the goldens of tests/fusion/test_reference.c: small models of random weights from Hugging Face transformers.

Each file holds, under the reference's own names,
  input/*      ids, pictures (u8, height x width x RGB), masks
  weight/*     every parameter, f32
  f32/*        outputs, the loss, and grad/NAME for every trained parameter, computed in f32
  bf16/*       the same with the model and its inputs in bf16 (model.to(bfloat16))

Run once, where PyTorch and transformers are: python tests/oracles/make_goldens.py. The tests need neither.
"""
import pathlib

import torch
from safetensors.torch import save_file
from transformers import (CLIPConfig, CLIPModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, ViTConfig,
                          ViTMAEConfig, ViTMAEForPreTraining, ViTModel)

FOLDER = pathlib.Path(__file__).parent
VOCABULARY, END = 61, 60


def randomise(model, std):
    """Every parameter gets noise, so that biases and norm scales count too; fixed positions stay."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator) * std
    return model.eval()


def pictures(count, side, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)


def normalised(images):
    return (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def record(out, kind, model, outputs, loss):
    model.zero_grad()
    loss.backward()
    for name, value in {**outputs, "loss": loss.reshape(1)}.items():
        out[f"{kind}/{name}"] = value.detach().clone().contiguous()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            out[f"{kind}/grad/{name}"] = parameter.grad.clone().contiguous()  # .to() below converts gradients too


def make(name, model, inputs, run):
    """run(model, dtype) -> ({name: output}, loss)"""
    model = randomise(model, 0.1)
    out = {f"input/{key}": value.contiguous() for key, value in inputs.items()}
    out |= {f"weight/{key}": value.detach().clone().contiguous() for key, value in model.named_parameters()}
    record(out, "f32", model, *run(model, torch.float32))
    model.to(torch.bfloat16)
    record(out, "bf16", model, *run(model, torch.bfloat16))
    save_file(out, FOLDER / f"{name}.safetensors", metadata={"format": "pt"})
    print(name, sum(value.nbytes for value in out.values()), "bytes, loss", float(out["f32/loss"]))


def token_ids(rows, length, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, END, (rows, length), generator=generator)


def causal(ids):
    def run(model, _):
        result = model(input_ids=ids, labels=ids)
        return {"logits": result.logits}, result.loss
    return run


def gpt2():
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=24, n_embd=32, n_layer=2, n_head=4, bos_token_id=2,
                        eos_token_id=3)
    ids = token_ids(3, 20, 2)
    make("gpt2", GPT2LMHeadModel(config), {"ids": ids.int()}, causal(ids))


def llama():
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=24, rms_norm_eps=1e-5,
                         tie_word_embeddings=False, bos_token_id=2, eos_token_id=3)
    ids = token_ids(3, 20, 3)
    make("llama", LlamaForCausalLM(config), {"ids": ids.int()}, causal(ids))


def vit():
    config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16,
                       patch_size=4)
    images = pictures(3, 16, 4)
    # The reference has no loss of its own without labels: a fixed linear one over all outputs.
    direction = torch.randn(3, 17, 32, generator=torch.Generator().manual_seed(5)) / (3 * 17)

    def run(model, dtype):
        hidden = model(pixel_values=normalised(images).to(dtype)).last_hidden_state
        return {"hidden": hidden}, (hidden.float() * direction).sum()
    make("vit", ViTModel(config, add_pooling_layer=False), {"images": images, "direction": direction}, run)


def mae():
    config = ViTMAEConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
                          image_size=24, patch_size=4, decoder_hidden_size=16, decoder_num_hidden_layers=2,
                          decoder_num_attention_heads=2, decoder_intermediate_size=64, mask_ratio=0.75,
                          norm_pix_loss=True)
    images = pictures(3, 24, 6)
    noise = torch.rand(3, 36, generator=torch.Generator().manual_seed(7))
    order = noise.argsort(dim=1)
    keep, masked = order[:, :9].sort(dim=1).values, order[:, 9:].sort(dim=1).values

    def run(model, dtype):
        result = model(pixel_values=normalised(images).to(dtype), noise=noise)
        pixels = torch.gather(result.logits, 1, masked[:, :, None].expand(-1, -1, 48))
        return {"pixels": pixels}, result.loss
    make("mae", ViTMAEForPreTraining(config), {"images": images, "keep": keep.int(), "masked": masked.int()}, run)


def clip():
    config = CLIPConfig(
        text_config=dict(vocab_size=VOCABULARY, hidden_size=24, intermediate_size=96, num_hidden_layers=2,
                         num_attention_heads=3, max_position_embeddings=12, bos_token_id=2, eos_token_id=END,
                         pad_token_id=0),
        vision_config=dict(hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                           image_size=16, patch_size=4),
        projection_dim=16)
    images, ids = pictures(5, 16, 8), token_ids(5, 12, 9)
    ends = torch.tensor([11, 4, 7, 9, 5])
    for row, end in enumerate(ends):
        ids[row, end], ids[row, end + 1:] = END, 0

    def run(model, dtype):
        result = model(input_ids=ids, pixel_values=normalised(images).to(dtype), return_loss=True)
        return {"image_features": result.image_embeds, "text_features": result.text_embeds}, result.loss
    model = CLIPModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)  # far from the minimum in it, where its gradient would be a difference of equals
    make("clip", model, {"images": images, "ids": ids.int(), "ends": ends.int()}, run)


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for golden in (gpt2, llama, vit, mae, clip):
        golden()
