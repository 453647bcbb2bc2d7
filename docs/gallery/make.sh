#!/usr/bin/env bash
# Makes everything in this folder anew, from the root of a checkout:  docs/gallery/make.sh SHAKESPEARE.txt [WORK]
# SHAKESPEARE.txt is Tiny Shakespeare. Runs go to WORK (runs/gallery), where what is finished is not repeated.
set -euo pipefail
text=$1 work=${2:-runs/gallery} gallery=docs/gallery
mkdir -p "$work"

report() { # RUN NAME: the same report as a paper and as a page
    rm -f "$gallery/$2.pdf" "$gallery/$2.html"
    gpt2lab report "$1" --out "$gallery/$2.pdf"
    gpt2lab report "$1" --out "$gallery/$2.html"
}

measure() { # RUN SPLIT: what context brings, and what each way of sampling makes of it
    gpt2lab eval positions "$1" --split "$2"
    gpt2lab eval text "$1" --split "$2"
}

quickstart() {
    [ -d "$work/quickstart" ] || gpt2lab quickstart --steps 1500 --out "$work/quickstart" | tee "$work/quickstart.txt"
    python "$gallery/terminal.py" "$work/quickstart.txt" docs/images/terminal.svg
    measure "$work/quickstart" test
    report "$work/quickstart" quickstart
    pdftoppm -png -r 90 -gray -f 3 -l 3 -singlefile "$gallery/quickstart.pdf" docs/images/report # from poppler
    mkdir -p "$gallery/decoding"
    cp "$work"/quickstart/evaluations/step_*/text.md "$gallery/decoding/README.md"
    cp "$work"/quickstart/evaluations/step_*/text.png "$gallery/decoding/"
    rm -rf "$work/stories-hf" "$work/stories"
    gpt2lab export-hf "$work/quickstart" "$work/stories-hf" # loads in transformers
    gpt2lab import-hf "$work/stories-hf" "$work/stories"    # the weights alone, without the optimiser's state
    cp -r "$work/stories/." "$gallery/stories/"
    rm -f "$gallery/stories.html"
    gpt2lab export-html "$gallery/stories" "$gallery/stories.html" # the model in a page
}

shakespeare_by_character() {
    if [ ! -d "$work/characters" ]; then
        gpt2lab tokenizer train --input "$text" --vocab-size 257 --out "$work/tokenizer-bytes"
        gpt2lab data prepare "$text" --tokenizer "$work/tokenizer-bytes" --out "$work/characters-data" \
            --val-fraction 0.1 --test-fraction 0
        gpt2lab train --data "$work/characters-data" --out "$work/characters" --steps 2000 --batch-tokens 768 \
            --model.n-layer 4 --model.n-head 4 --model.n-embd 128 --model.n-ctx 64 \
            --optim.lr 3e-3 --optim.min-lr 1e-4 --optim.warmup-steps 100 --sample-prompt "ROMEO:"
        gpt2lab eval perplexity "$work/characters" --split val --context 64 --stride 64 --checkpoint last
    fi
    measure "$work/characters" val # all that is held out
    report "$work/characters" shakespeare-characters
}

shakespeare_by_bpe() {
    [ -d "$work/shakespeare" ] || gpt2lab quickstart --text "$text" --steps 1500 --out "$work/shakespeare"
    measure "$work/shakespeare" test
    report "$work/shakespeare" shakespeare-bpe
}

comparison() { # NAME OPTIONS...: three seeds of each variant, on the quickstart's stories
    local name=$1
    shift
    gpt2lab compare --base tiny "$@" --seeds 3 --data "$work/quickstart-data" --out "$work/$name" \
        --model.dropout 0 --optim.name muon --optim.lr 4e-3 --optim.min-lr 4e-5 --optim.warmup-steps 50 \
        --batch-tokens 2048 --steps 1000 --eval-every 100 --compile off
    cp "$work/$name/comparison.html" "$gallery/$name.html"
    cp "$work/$name/table.md" "$gallery/$name.md"
}

recall() { # how far back a model finds what it has read once, at a context of 1,024
    if [ ! -d "$work/cycles-data" ]; then
        python "$gallery/cycles.py" "$work/cycles.jsonl"
        gpt2lab tokenizer train --input "$work/cycles.jsonl" --vocab-size 347 --max-documents 5000 --out "$work/cycles"
        gpt2lab data prepare "$work/cycles.jsonl" --tokenizer "$work/cycles" --out "$work/cycles-data"
    fi
    gpt2lab compare --base tiny --arm "full:" --arm "grouped: model.n_kv_head=1" \
        --arm "window: model.mask=window model.window=64" --seeds 2 --data "$work/cycles-data" --out "$work/recall" \
        --model.n-ctx 1024 --model.position rope --model.dropout 0 --optim.name muon --optim.lr 4e-3 \
        --optim.min-lr 4e-5 --optim.warmup-steps 50 --batch-tokens 4096 --steps 700 --eval-every 100 --compile off
    cp "$work/recall/comparison.html" "$gallery/recall.html"
    cp "$work/recall/table.md" "$gallery/recall.md"
    cp "$work/recall/recall.png" docs/images/recall.png
}

modern() { # each part that came after GPT-2 alone, then one added after another, on two corpora; long contexts
    muon="--model.dropout 0 --optim.name muon --optim.lr 4e-3 --optim.min-lr 4e-5 --optim.warmup-steps 50 --compile off"
    study() { # NAME DATA ARMS...: five seeds of each variant
        local name=$1 data=$2
        shift 2
        gpt2lab compare --base tiny "$@" --seeds 5 --data "$data" --out "$work/modern/$name" \
            $muon --batch-tokens 2048 --steps 300 --eval-every 100
    }
    contexts() { # LENGTH ARMS...: two seeds of each variant, on Tiny Shakespeare by BPE
        local length=$1
        shift
        gpt2lab compare --base tiny "$@" --seeds 2 --data "$work/shakespeare-data" --out "$work/modern/context-$length" \
            $muon --model.n-ctx "$length" --batch-tokens 4096 --steps 200 --eval-every 100
    }
    two="model.position=rope model.norm=rmsnorm"
    three="$two model.activation=swiglu" four="$two model.activation=swiglu model.qk_norm=true"
    five="$four model.bias=false" six="$four model.bias=false model.tied_head=false"
    parts() { # CORPUS DATA LENGTHS...: every part; GPT-2 for more and for fewer steps
        local corpus=$1 data=$2
        shift 2
        study "$corpus-alone" "$data" --arm "GPT-2:" \
            --arm "RMSNorm: model.norm=rmsnorm" --arm "post-norm: model.norm_placement=post" \
            --arm "sandwich norm: model.norm_placement=sandwich" --arm "QK-norm: model.qk_norm=true" \
            --arm "embedding norm: model.embedding_norm=true" --arm "no biases: model.bias=false" \
            --arm "ReLU2: model.activation=relu2" --arm "SwiGLU: model.activation=swiglu" \
            --arm "parallel blocks: model.parallel_blocks=true" --arm "untied head: model.tied_head=false" \
            --arm "logit softcap: model.logit_softcap=30" --arm "z-loss: model.z_loss=1e-4" \
            --arm "rotary: model.position=rope" --arm "ALiBi: model.position=alibi" \
            --arm "no positions: model.position=none"
        # n_inner makes up for the parameters that these parts add or save
        study "$corpus-more" "$data" --arm "grouped heads: model.n_kv_head=2 model.n_inner=576" \
            --arm "attention softcap: model.attention_softcap=50" --arm "sinks: model.attention_sinks=true" \
            --arm "gated attention: model.attention_gate=true model.n_inner=448" \
            --arm "value residual: model.value_residual=true" \
            --arm "differential attention: model.differential_attention=true" \
            --arm "latent attention: model.position=rope model.latent_dim=64 model.n_inner=576" \
            --arm "window, full: model.mask=window,causal model.window=64" \
            --arm "multi-token: model.mtp_depth=1 model.mtp_weight=0.3" \
            --arm "2 RMSNorm: $two" --arm "3 SwiGLU: $three" --arm "4 QK-norm: $four" --arm "5 no biases: $five" \
            --arm "6 untied: $six" --arm "7 value residual: $six model.value_residual=true"
        study "$corpus-budgets" "$data" --arm "270: steps=270" --arm "330: steps=330" --arm "420: steps=420" "$@" \
            --arm "wider: model.n_embd=152"
    }
    parts stories "$work/quickstart-data"
    parts shakespeare "$work/shakespeare-data" --arm "490: steps=490" # as long as multi-token prediction takes
    four_kinds=(--arm "learned:" --arm "rotary: model.position=rope" --arm "ALiBi: model.position=alibi"
        --arm "rotary, window: model.position=rope model.mask=window model.window=128")
    contexts 1024 "${four_kinds[@]}" \
        --arm "rotary, window, first 4: model.position=rope model.mask=global model.window=128 model.prefix=4" \
        --arm "rotary, learned sinks: model.position=rope model.attention_sinks=true"
    contexts 2048 "${four_kinds[@]}"
    python "$gallery/modern.py" "$work/modern"
}

play() { # pictures of the pages, on two models with samples during training
    for position in learned rope; do
        [ -d "$work/stories-$position" ] || gpt2lab train --data "$work/quickstart-data" --out "$work/stories-$position" \
            --preset tiny --steps 1000 --model.n-layer 4 --model.n-head 4 --model.n-embd 128 --model.n-ctx 128 \
            --model.dropout 0 --model.position "$position" --batch-tokens 2048 --log-every 5 --eval-every 50 \
            --optim.name muon --optim.lr 4e-3 --optim.min-lr 4e-5 --optim.warmup-steps 50 --compile off \
            --sample-prompt "One day" --sample-every 200
    done
    python "$gallery/play.py" "$work/stories-learned" "$work/stories-rope" docs/images/play
}

quickstart
play
shakespeare_by_character
shakespeare_by_bpe
comparison attention --arm "baseline:" --arm "rotary: model.position=rope" --arm "grouped: model.n_kv_head=1" \
    --arm "window: model.mask=window model.window=64" \
    --arm "all three: model.position=rope model.n_kv_head=1 model.mask=window model.window=64"
for picture in curves recall; do # docs/attention.md shows them
    cp "$work/attention/$picture.png" "docs/images/attention-$picture.png"
done
comparison sizes --vary model.n_embd=64,128,192
recall
modern
