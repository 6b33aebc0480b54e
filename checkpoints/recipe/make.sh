#!/bin/sh
# Make the bundled bot from the corpora. A finished step is not repeated, a stopped step is resumed.
#   sh checkpoints/recipe/make.sh CORPORA WORK [data|pretrain|finetune|deepen|export|measure]...     (default: all steps)
# CORPORA is a folder with the files that data() reads. The result is WORK/default; copy it to checkpoints/.
set -eu
unset CDPATH
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
corpora=$(cd "${1:?give the folder of the corpora}" && pwd)
mkdir -p "${2:?give a working folder}"
work=$(cd "$2" && pwd)
shift 2
[ $# -gt 0 ] || set -- data pretrain finetune deepen export measure
threads=${THREADS:-2}
precision=${PRECISION:-no}
shorter=${SHORTER:-1} # divides the number of steps of every run; above 1, only few replies are measured
export OMP_NUM_THREADS="$threads" PATH="$root/.venv/bin:$PATH" PYTHONPATH="$root"

prepare() { # name, then the flags of xianliao-prepare
    name=$1
    shift
    xianliao-prepare --output "$work/$name" --words "$here/words.txt" "$@"
}

data() {
    set -- "$corpora/LCCC-base_valid.json" "$corpora/cdial_toy_train.txt" "$corpora/xpersona_zh.jsonl.gz" \
        "$corpora/cped_valid.jsonl.gz" "$root/data_prep/samples"
    prepare tokens --input "$@" "$corpora/dgk_subtitles.jsonl.xz" --vocab-size 8192
    prepare chat --input "$@" --tokenizer "$work/tokens"
    prepare lccc --input "$1" --tokenizer "$work/tokens"
    prepare dgk --input "$corpora/dgk_subtitles.jsonl.xz" --tokenizer "$work/tokens"
    prepare long --input "$corpora/kdconv_dev.jsonl.gz" "$corpora/cpsycoun.jsonl.xz" --tokenizer "$work/tokens"
    prepare smile --input "$corpora/smile.jsonl.xz" --max-dialogues 24000 --tokenizer "$work/tokens"
    ours own identity
    ours talk talk
    ours plain plain
}

ours() { # name, folder below dialogues/
    prepare "$1" --input "$here/dialogues/$2" --tokenizer "$work/tokens" \
        --skip echo generic_replies copied_replies hot_posts blocked_words no_chinese advertisement
}

train() { # name, number of steps, then the flags of xianliao-train
    output=$work/$1
    steps=$((($2 + shorter - 1) / shorter))
    shift 2
    for state in "$output"/resume/step-*; do
        [ ! -e "$state" ] || set -- "$@" --resume
        break
    done
    xianliao-train --output "$output" --threads "$threads" --precision "$precision" --max-steps "$steps" "$@"
}

pretrain() {
    train pretrained 2600 --config "$here/pretrain.yaml" \
        --data "$work/chat" "$work/dgk" "$work/long" "$work/smile:0.17" "$work/own:2"
    longer more 3400 pretrained 0
    longer longer 2100 more 3
}

longer() { # name, steps, initial checkpoint, seed
    train "$1" "$2" --config "$here/finetune.yaml" --init "$work/$3" --seed "$4" --warmup-steps 50 \
        --weight-average 0.998 --final-learning-rate-share 1 \
        --data "$work/chat:2" "$work/dgk:2" "$work/long" "$work/smile:0.6"
}

finetune() {
    first first-a 0
    first first-b 2
    second second-a 1 8 1100
    second second-b 5 12 1100
    second second-c 7 6 800
    mean tuned 0.2 first-a 0.25 first-b 0.15 second-a 0.3 second-b 0.1 longer
    last last 9 350 tuned 8
    mean before 0.35 last 0.35 second-c 0.2 tuned 0.1 longer
    last talk-a 11 420 before 5 "$work/talk:6"
    last talk-b 12 300 before 4 "$work/talk:5" "$work/lccc:0.3"
    mean finetuned 0.3 talk-a 0.3 talk-b 0.4 before
}

first() { # name, seed
    train "$1" 1400 --config "$here/finetune.yaml" --init "$work/longer" --seed "$2" \
        --data "$work/chat" "$work/own:10:replies" "$work/dgk:0.3" "$work/long:0.2" "$work/smile:0.05"
}

second() { # name, seed, weight of the own dialogues, steps; more LCCC than first, and dropout
    train "$1" "$4" --config "$here/finetune.yaml" --init "$work/longer" --seed "$2" --regularization.dropout 0.1 \
        --data "$work/chat" "$work/lccc:0.6" "$work/own:$3:replies" "$work/dgk:0.15" "$work/long:0.15" \
        "$work/smile:0.03"
}

last() { # name, seed, steps, initial checkpoint, weight of the own dialogues, then further sets
    name=$1 seed=$2 most=$3 from=$4 own=$5
    shift 5
    train "$name" "$most" --config "$here/finetune.yaml" --init "$work/$from" --seed "$seed" \
        --regularization.dropout 0.1 --weight-average 0.98 --learning-rate 2e-3 --warmup-steps 20 --eval-every 175 \
        --data "$work/chat" "$work/own:$own:replies" "$@" "$work/dgk:0.1" "$work/long:0.1" "$work/smile:0.01"
}

deepen() {
    [ -e "$work/deep12/config.json" ] || python -m training.deepen "$work/deep12" "$work/finetuned" --layers 12
    train deep 662 --config "$here/deep.yaml" --init "$work/deep12" --data "$work/plain:6" "$work/talk:2" "$work/own" \
        "$work/chat:0.7" "$work/dgk:0.3" "$work/long:0.2" "$work/smile:0.07"
    replies deeper 245 deep 1
    replies settled 318 deeper 0
}

replies() { # name, steps, initial checkpoint, share of the rate at the end; of the own dialogues the bot's turns alone
    train "$1" "$2" --config "$here/deep.yaml" --init "$work/$3" --final-learning-rate-share "$4" --weight-average 0.98 \
        --data "$work/plain:6:replies" "$work/own:16:replies" "$work/talk:8:replies" "$work/chat:1.2" "$work/dgk:0.2" \
        "$work/long:0.2" "$work/smile:0.02"
}

mean() { # name, then pairs of a weight and a checkpoint
    name=$1
    shift
    for part in "$@"; do
        shift
        [ ! -d "$work/$part" ] || part=$work/$part
        set -- "$@" "$part"
    done
    python -m training.average_checkpoints "$work/$name" "$@"
}

set_sampling() { # generation_config.json
    python -c 'import pathlib, sys
from chatbot.checkpoint.folder import read_json, write_json
from chatbot.text.word_lists import read_word_list
path = pathlib.Path(sys.argv[1])
words = read_word_list(pathlib.Path(sys.argv[2]))
write_json(path, {**read_json(path), "temperature": 0.6, "top_p": 0.95, "candidates": 4, "script": "simplified",
    "banned_words": words})' "$1" "$here/banned_words.txt"
}

export_() {
    rm -rf "$work/default.new"
    python -m chatbot.checkpoint "$work/settled" "$work/default.new" --int8
    set_sampling "$work/default.new/generation_config.json"
    python -m chatbot.similarity --data "$work/chat" --checkpoint "$work/default.new"
    rm -rf "$work/default"
    mv "$work/default.new" "$work/default"
}

measure() {
    contexts=1000 seeds=5 dialogues=1000000 questions=1000000
    [ "$shorter" -eq 1 ] || contexts=30 seeds=1 dialogues=50 questions=20
    xianliao-evaluate --checkpoint "$work/default" --data "$work/lccc" --contexts "$contexts" --baseline \
        --output "$work/report"
    python -m chatbot.evaluation.behaviour --checkpoint "$work/default" --replies "$work/chat" --data "$work/lccc" \
        --long "$work/long" "$work/smile" --seeds "$seeds" --questions "$questions" --dialogues "$dialogues" \
        >"$work/report/behaviour.md"
    cat "$work/report/behaviour.md"
}

for step in "$@"; do
    case $step in
    data | pretrain | finetune | deepen | measure) $step ;;
    export) export_ ;;
    *) echo "Unknown step $step. The steps are data, pretrain, finetune, deepen, export and measure." >&2 && exit 2 ;;
    esac
done
