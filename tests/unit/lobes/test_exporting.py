"""The graph of an encoder: the same values by other operations."""

import torch

from summarymixing.lobes.exporting import ConvolvingFrontEnd, fourier_kernels
from summarymixing.lobes.features import FbankFrontEnd


def test_a_spectrum_by_convolution():
    window, frame = torch.rand(40), torch.rand(40)
    spectrum = torch.fft.rfft((window * frame).double())
    kernels = fourier_kernels(window).squeeze(1)
    real, imaginary = (kernels.double() @ frame.double()).chunk(2)
    torch.testing.assert_close(real, spectrum.real, rtol=0, atol=1e-6)
    torch.testing.assert_close(imaginary, spectrum.imag, rtol=0, atol=1e-6)


def test_quiet_and_loud_audio_through_both_front_ends():
    front_end = FbankFrontEnd(num_mels=40, channels=6).eval()
    other = ConvolvingFrontEnd(front_end)
    # 70 dB from the first to the last second.
    loudness = 10 ** torch.linspace(-3.5, 0, 48_000)
    wavs = (torch.rand(2, 48_000) - 0.5) * loudness
    num_samples = torch.tensor([48_000, 30_001])
    latents, padding_mask = front_end(wavs, num_samples)
    found, found_mask = other(wavs, num_samples)
    assert torch.equal(padding_mask, found_mask)
    torch.testing.assert_close(found, latents, rtol=0, atol=1e-4)
