r"""Full fine-tuning for speech recognition: encoder and CTC head both learn.

torchrun --nproc_per_node=1 recipes/finetuning/ctc.py \
    hparams/finetuning/librispeech100.yaml --encoder=results/my_run/encoder \
    --manifests=MANIFESTS --output_folder=results/my_asr [--key=value ...]

Started again with the same command, the run goes on from its last checkpoint.
"""

from summarymixing.run.launch import run
from summarymixing.training.finetuning import fine_tune

if __name__ == "__main__":
    run(fine_tune)
