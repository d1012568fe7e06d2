// Which kernels of half precision are compiled.
#pragma once

#if defined(__AVX512BF16__) && defined(__AVX512VL__)
#define HALF_BY_PROCESSOR
#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define HALF_TILES
#endif
#endif

#if defined(HALF_BY_PROCESSOR) || defined(WIDE)  // WIDE: for tests on other processors
#define HALF_KERNELS
#endif
