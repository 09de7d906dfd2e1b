r"""MP3S classification on a frozen encoder: SLURP and IEMOCAP.

torchrun --nproc_per_node=1 recipes/mp3s/classification.py \
    hparams/mp3s/slurp_lstm.yaml --encoder=results/my_run/encoder \
    --manifests=MANIFESTS --output_folder=results/my_probe [--key=value ...]

--fold=all runs every fold of IEMOCAP, with mean and deviation.

Started again with the same command, the run goes on from its last checkpoint.
"""

from summarymixing.run.launch import run
from summarymixing.training.probe import run_probe

if __name__ == "__main__":
    run(run_probe)
