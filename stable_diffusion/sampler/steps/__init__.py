"""The step functions of the samplers: latents at one noise level → latents at the next.

All of them get x_0 and the noise, as the network estimates them, and differ in how they combine the
two with those of the calls before. They are pure functions, and equal the steps of diffusers'
schedulers.
"""
