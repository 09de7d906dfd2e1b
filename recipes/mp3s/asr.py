r"""MP3S speech recognition: a CTC head on a frozen encoder.

torchrun --nproc_per_node=1 recipes/mp3s/asr.py \
    hparams/mp3s/librispeech_lstm.yaml --encoder=results/my_run/encoder \
    --manifests=MANIFESTS --output_folder=results/my_probe [--key=value ...]

Started again with the same command, the run goes on from its last checkpoint.
"""

from summarymixing.run.launch import run
from summarymixing.training.probe import run_probe

if __name__ == "__main__":
    run(run_probe)
