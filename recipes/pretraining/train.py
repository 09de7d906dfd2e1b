"""Pre-train wav2vec 2.0 with a SummaryMixing (or attention) Conformer.

torchrun --nproc_per_node=N recipes/pretraining/train.py \
    hparams/pretraining/summarymixing_base.yaml \
    --manifests=MANIFESTS --output_folder=results/my_run [--key=value ...]

Started again with the same command, the run goes on from its last checkpoint.
"""

from summarymixing.run.launch import run
from summarymixing.training.pretraining import pretrain

if __name__ == "__main__":
    run(pretrain)
