// From two pictures of the console to one plane of an observation.
//
// A step's last two frames are converted to gray (or to red, green and blue), their pixelwise
// maximum is taken, so that objects that a game draws only in every other frame stay visible, and
// the result is reduced to the size of an observation by averaging over areas. All three happen
// row by row in one pass.
//
// The averages are OpenCV's INTER_AREA (modules/imgproc/src/resize.cpp, release 4.10) to the last
// bit: the same float32 weights, products and sums in the same order. A multiplication and the
// addition after it are rounded separately there, so this file must be compiled without contraction
// to fused multiply-add (-ffp-contract=off, NVRTC --fmad=false).
#pragma once

#include "tia.hpp"

namespace coordrl {

constexpr i32 kMaxHeight = 250;  // lines of the tallest picture (PAL)
constexpr f64 kEpsilon = 2.220446049250313e-16;  // of a double

/// The source pixels that an output pixel averages along one axis, and their weights.
struct AreaTaps {
  i32 first;   // first source pixel
  i32 count;   // consecutive source pixels
  i32 weight;  // index of the first pixel's weight in AreaAxis::weights
};

/// The reduction of one axis from `source` to `target` pixels, target <= source <= kMaxHeight.
struct AreaAxis {
  i32 source, target;
  i32 whole;  // source / target if that is a whole number in floating point, else 0
  AreaTaps taps[kMaxHeight];
  f32 weights[3 * kMaxHeight];
};

COORDRL_HD inline AreaAxis area_axis(i32 source, i32 target) {
  AreaAxis axis{};
  axis.source = source;
  axis.target = target;
  const f64 scale = 1.0 / (f64(target) / f64(source));
  const f64 miss = scale - i32(scale + 0.5);
  axis.whole = -kEpsilon < miss && miss < kEpsilon ? i32(scale + 0.5) : 0;
  i32 used = 0;
  for (i32 d = 0; d < target; ++d) {
    const f64 begin = d * scale, end = begin + scale;
    const f64 cell = scale < source - begin ? scale : source - begin;
    i32 inner = i32(begin) < begin ? i32(begin) + 1 : i32(begin);  // first pixel wholly inside
    const i32 last = i32(end) < source - 1 ? i32(end) : source - 1;
    if (inner > last) inner = last;
    AreaTaps& taps = axis.taps[d];
    taps = {inner, 0, used};
    if (inner - begin > 1e-3) {
      taps.first = inner - 1;
      axis.weights[used++] = f32((inner - begin) / cell);
    }
    for (i32 i = inner; i < last; ++i) axis.weights[used++] = f32(1.0 / cell);
    if (end - last > 1e-3) {
      f64 rest = end - last < 1.0 ? end - last : 1.0;
      if (rest > cell) rest = cell;
      axis.weights[used++] = f32(rest / cell);
    }
    taps.count = used - taps.weight;
  }
  return axis;
}

constexpr f32 kRounding = 12582912.0f;  // 1.5 * 2^23: a float32 this large has no fraction

/// Rounds to the nearest integer, ties to even, for 0 <= value <= 255.
COORDRL_HD inline u8 round_to_byte(f32 value) {
#ifdef __CUDA_ARCH__
  return u8(__float2int_rn(value));
#else
  const f32 shifted = value + kRounding;
  u32 bits;
  __builtin_memcpy(&bits, &shifted, 4);
  return u8(bits);
#endif
}

/// The plan of a reduction from pictures of kWidth x height pixels.
///
/// If the width of an observation is a multiple of four, the four quarters of a line are averaged
/// in parallel: their taps are the same, and four pixels fill a vector register. The
/// weights of one quarter may differ from another's in the last bit, so each has its own.
struct Reduction {
  AreaAxis rows, columns;
  i32 quarters;     // parts of a line that are averaged in parallel: 4 or 1
  i32 taps;         // pixels per average of columns, including those of weight 0
  u8 first[kWidth]; // first source pixel of output i, relative to its quarter
  f32 weights[4 * kWidth];  // [output in quarter][tap][quarter]
};

COORDRL_HD inline Reduction reduction(i32 height, i32 target_height, i32 target_width) {
  Reduction plan{};
  plan.rows = area_axis(height, target_height);
  plan.columns = area_axis(kWidth, target_width);
  plan.quarters = target_width % 4 == 0 ? 4 : 1;
  const i32 outputs = target_width / plan.quarters, sources = kWidth / plan.quarters;
  for (i32 pass = 0; pass < 2; ++pass) {  // measure, then fill in
    for (i32 i = 0; i < outputs; ++i) {
      i32 first = sources, end = 0;
      for (i32 q = 0; q < plan.quarters; ++q) {
        const AreaTaps& taps = plan.columns.taps[q * outputs + i];
        const i32 begin = taps.first - q * sources;
        if (begin < first) first = begin;
        if (begin + taps.count > end) end = begin + taps.count;
      }
      if (pass == 0) {
        if (end - first > plan.taps) plan.taps = end - first;
        continue;
      }
      if (first + plan.taps > sources) first = sources - plan.taps;
      plan.first[i] = u8(first);
      for (i32 q = 0; q < plan.quarters; ++q) {
        const AreaTaps& taps = plan.columns.taps[q * outputs + i];
        for (i32 t = 0; t < taps.count; ++t) {
          const i32 tap = taps.first - q * sources - first + t;
          plan.weights[(i * plan.taps + tap) * plan.quarters + q] =
              plan.columns.weights[taps.weight + t];
        }
      }
    }
  }
  return plan;
}

/// The input of a reduction: the pixelwise maximum of the intensities of one to three pictures.
///
/// Two are a step's last frames. A step that ends one frame early has a third: its maximum still
/// includes the picture of the step before.
struct Pictures {
  const u8* pixels[3];  // color indices, kWidth to a line
  i32 count;
  const u8* intensity;  // 256 entries: a color index's intensity in the current channel;
                        // nullptr: `pixels` are intensities already
};

COORDRL_HD COORDRL_INLINE bool equals_row_above(const Pictures& pictures, i32 row) {
  u64 difference = 0;
  for (i32 i = 0; i < pictures.count; ++i) {
    const u8* const line = pictures.pixels[i] + row * kWidth;
    for (i32 x = 0; x < kWidth; x += 8) difference |= load8(line + x) ^ load8(line + x - kWidth);
  }
  return difference == 0;
}

COORDRL_HD inline void pooled_row(const Pictures& pictures, i32 row, u8* pooled) {
  const u8* const intensity = pictures.intensity;
  for (i32 x = 0; x < kWidth; ++x) pooled[x] = 0;
  for (i32 i = 0; i < pictures.count; ++i) {
    const u8* const line = pictures.pixels[i] + row * kWidth;
    u8 values[kWidth];
    for (i32 x = 0; x < kWidth; ++x) values[x] = line[x];
    if (intensity != nullptr) {
      for (i32 x = 0; x < kWidth; ++x) values[x] = intensity[line[x]];
    }
    for (i32 x = 0; x < kWidth; ++x) pooled[x] = values[x] > pooled[x] ? values[x] : pooled[x];
  }
}

/// The averages of a line's columns, output i of quarter q at [i * quarters + q].
template <i32 kQuarters, i32 kTaps>
COORDRL_HD inline void average_columns(const Reduction& plan, const u8* pixels, f32* averages) {
  constexpr i32 sources = kWidth / kQuarters;
  const i32 taps = kTaps > 0 ? kTaps : plan.taps;
  const i32 outputs = plan.columns.target / kQuarters;
  u8 interleaved[kWidth];
  for (i32 i = 0; i < sources; ++i) {
    for (i32 q = 0; q < kQuarters; ++q) interleaved[i * kQuarters + q] = pixels[q * sources + i];
  }
  f32 values[kWidth];
  for (i32 x = 0; x < kWidth; ++x) values[x] = interleaved[x];
  const f32* weights = plan.weights;
  for (i32 i = 0; i < outputs; ++i, weights += taps * kQuarters) {
    const f32* const value = values + plan.first[i] * kQuarters;
    f32 sum[kQuarters] = {};
    for (i32 t = 0; t < taps; ++t) {
      for (i32 q = 0; q < kQuarters; ++q) {
        sum[q] += value[t * kQuarters + q] * weights[t * kQuarters + q];
      }
    }
    for (i32 q = 0; q < kQuarters; ++q) averages[i * kQuarters + q] = sum[q];
  }
}

/// Reduces by whole numbers of rows and columns: OpenCV adds bytes as integers and scales once.
COORDRL_HD inline void reduce_whole(
    const Reduction& plan, const Pictures& pictures, u8* plane, i32 stride) {
  const i32 height = plan.rows.whole, width = plan.columns.whole;
  const f32 share = 1.0f / (height * width);
  u8 pixels[kWidth];
  i32 sums[kWidth];
  for (i32 y = 0; y < plan.rows.target; ++y) {
    for (i32 x = 0; x < plan.columns.target; ++x) sums[x] = 0;
    for (i32 row = y * height; row < (y + 1) * height; ++row) {
      pooled_row(pictures, row, pixels);
      for (i32 x = 0; x < plan.columns.target; ++x) {
        for (i32 i = 0; i < width; ++i) sums[x] += pixels[x * width + i];
      }
    }
    for (i32 x = 0; x < plan.columns.target; ++x, plane += stride) {
      *plane = height == 2 && width == 2 ? u8((sums[x] + 2) >> 2) : round_to_byte(sums[x] * share);
    }
  }
}

template <i32 kQuarters, i32 kTaps>
COORDRL_HD inline void reduce_fractional(
    const Reduction& plan, const Pictures& pictures, u8* plane, i32 stride) {
  const i32 width = plan.columns.target, outputs = width / kQuarters;
  u8 pixels[kWidth];
  f32 averages[kWidth], sums[kWidth];
  i32 averaged = -1;  // the row that `averages` belongs to
  for (i32 y = 0; y < plan.rows.target; ++y, plane += width * stride) {
    const AreaTaps taps = plan.rows.taps[y];
    for (i32 t = 0; t < taps.count; ++t) {
      const i32 row = taps.first + t;
      if (row != averaged) {
        if (row == 0 || row != averaged + 1 || !equals_row_above(pictures, row)) {
          pooled_row(pictures, row, pixels);
          average_columns<kQuarters, kTaps>(plan, pixels, averages);
        }
        averaged = row;
      }
      const f32 weight = plan.rows.weights[taps.weight + t];
      if (t == 0) {
        for (i32 x = 0; x < width; ++x) sums[x] = weight * averages[x];
      } else {
        for (i32 x = 0; x < width; ++x) sums[x] += weight * averages[x];
      }
    }
    for (i32 q = 0; q < kQuarters; ++q) {
      for (i32 i = 0; i < outputs; ++i) {
        plane[(q * outputs + i) * stride] = round_to_byte(sums[i * kQuarters + q]);
      }
    }
  }
}

#if defined(__GNUC__) && defined(__x86_64__) && !defined(__CUDACC__)
#define COORDRL_PAIRS

// Vectors: a language extension of GCC and Clang.
using U8x8 = u8 __attribute__((vector_size(8)));
using U8x16 = u8 __attribute__((vector_size(16)));
using I8x16 = char __attribute__((vector_size(16)));
using I32x4 = i32 __attribute__((vector_size(16)));
using I32x8 = i32 __attribute__((vector_size(32)));
using F32x4 = f32 __attribute__((vector_size(16)));
using F32x8 = f32 __attribute__((vector_size(32)));

/// Averages the columns of two rows of one picture, or of the maximum of two, like
/// `average_columns`: in registers of eight numbers, the lower half holds the quarters of the first
/// row, the upper half those of the second.
__attribute__((target("avx2"))) inline void average_pair(const Reduction& plan, const u8* picture,
                                                         const u8* other, i32 first, i32 second,
                                                         f32* first_averages,
                                                         f32* second_averages) {
  constexpr i32 sources = kWidth / 4;
  alignas(32) f32 values[8 * sources];
  for (i32 x = 0; x < sources; x += 8) {
    // Pixels are loaded eight at a time and interleaved in registers: a load that spans several
    // recent stores would have to wait for them.
    U8x16 quads[2][2];  // per row: four pixels of each quarter, then the next four
    for (i32 row = 0; row < 2; ++row) {
      U8x8 quarter[4];
      for (i32 q = 0; q < 4; ++q) {
        const i32 place = (row == 0 ? first : second) * kWidth + q * sources + x;
        U8x8 a, b;
        __builtin_memcpy(&a, picture + place, 8);
        __builtin_memcpy(&b, other + place, 8);
        quarter[q] = a > b ? a : b;
      }
      const U8x16 even = __builtin_shufflevector(quarter[0], quarter[2], 0, 8, 1, 9, 2, 10, 3, 11,
                                                 4, 12, 5, 13, 6, 14, 7, 15);
      const U8x16 odd = __builtin_shufflevector(quarter[1], quarter[3], 0, 8, 1, 9, 2, 10, 3, 11,
                                                4, 12, 5, 13, 6, 14, 7, 15);
      quads[row][0] = __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21,
                                              6, 22, 7, 23);
      quads[row][1] = __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13,
                                              29, 14, 30, 15, 31);
    }
    for (i32 half = 0; half < 2; ++half) {
      const I32x4 a = I32x4(quads[0][half]), b = I32x4(quads[1][half]);
      const U8x16 pairs[2] = {U8x16(__builtin_shufflevector(a, b, 0, 4, 1, 5)),
                              U8x16(__builtin_shufflevector(a, b, 2, 6, 3, 7))};
      for (i32 i = 0; i < 4; ++i) {
        const U8x16 two = pairs[i / 2];
        const U8x16 pixel = i % 2 == 0 ? two
                                       : __builtin_shufflevector(two, two, 8, 9, 10, 11, 12, 13, 14,
                                                                 15, 8, 9, 10, 11, 12, 13, 14, 15);
#ifdef __clang__
        const F32x8 numbers = __builtin_convertvector(
            __builtin_shufflevector(pixel, pixel, 0, 1, 2, 3, 4, 5, 6, 7), F32x8);
#else  // GCC would unpack the bytes one by one for that
        const F32x8 numbers = __builtin_convertvector(
            I32x8(__builtin_ia32_pmovzxbd256(I8x16(pixel))), F32x8);
#endif
        __builtin_memcpy(values + 8 * (x + 4 * half + i), &numbers, 32);
      }
    }
  }
  const f32* weights = plan.weights;
  for (i32 i = 0; i < plan.columns.target / 4; ++i, weights += 12) {
    const f32* value = values + 8 * plan.first[i];
    F32x8 sum{};
    for (i32 t = 0; t < 3; ++t) {
      F32x4 weight;
      F32x8 pixel;
      __builtin_memcpy(&weight, weights + 4 * t, 16);
      __builtin_memcpy(&pixel, value + 8 * t, 32);
      sum += pixel * __builtin_shufflevector(weight, weight, 0, 1, 2, 3, 0, 1, 2, 3);
    }
    __builtin_memcpy(first_averages + 4 * i, &sum, 16);
    __builtin_memcpy(second_averages + 4 * i, reinterpret_cast<const f32*>(&sum) + 4, 16);
  }
}

/// The same as `reduce_fractional<4, 3>`, for shades of gray in consecutive bytes. That is what
/// agents usually see, and processors of the last ten years do it in half the time this way.
__attribute__((target("avx2"))) inline void reduce_pairs(const Reduction& plan,
                                                         const Pictures& pictures, u8* plane) {
  const i32 width = plan.columns.target, outputs = width / 4;
  const u8* const picture = pictures.pixels[0];
  const u8* const other = pictures.pixels[pictures.count - 1];
  // Whole registers; the last one may extend beyond the last output.
  alignas(32) f32 sums[kWidth + 16], averages[2][kWidth + 16] = {};
  i32 slot = 0;           // averages of the current row ...
  i32 end = 0, next = 0;  // ... and of equal ones up to `end`; in the other slot, up to `next`
  for (i32 y = 0; y < plan.rows.target; ++y, plane += width) {
    const AreaTaps taps = plan.rows.taps[y];
    for (i32 t = 0; t < taps.count; ++t) {
      const i32 row = taps.first + t;
      while (row >= end) {
        slot ^= 1;
        if (end == next) {
          const i32 first = end;
          do ++end; while (end < plan.rows.source && equals_row_above(pictures, end));
          next = end;
          do ++next; while (next < plan.rows.source && equals_row_above(pictures, next));
          if (next > plan.rows.source) next = end;  // `end` is below the picture
          average_pair(plan, picture, other, first, next > end ? end : first, averages[slot],
                       averages[slot ^ 1]);
        } else {
          end = next;
        }
      }
      const f32 weight = plan.rows.weights[taps.weight + t];
      for (i32 x = 0; x < width; x += 8) {
        F32x8 average, sum;
        __builtin_memcpy(&average, averages[slot] + x, 32);
        if (t > 0) {
          __builtin_memcpy(&sum, sums + x, 32);
          sum += weight * average;
        } else {
          sum = weight * average;
        }
        __builtin_memcpy(sums + x, &sum, 32);
      }
    }
    i32 done = 0;
    for (; done + 4 <= outputs; done += 4) {  // of each quarter
      U8x16 output[4];
      for (i32 i = 0; i < 4; ++i) {
        F32x4 sum;
        __builtin_memcpy(&sum, sums + 4 * (done + i), 16);
        output[i] = U8x16(sum + kRounding);
      }
      const U8x16 even = __builtin_shufflevector(output[0], output[2], 0, 16, 4, 20, 8, 24, 12, 28,
                                                 0, 16, 4, 20, 8, 24, 12, 28);
      const U8x16 odd = __builtin_shufflevector(output[1], output[3], 0, 16, 4, 20, 8, 24, 12, 28,
                                                0, 16, 4, 20, 8, 24, 12, 28);
      const U8x16 quarters = __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20,
                                                     5, 21, 6, 22, 7, 23);
      const u8* const bytes = reinterpret_cast<const u8*>(&quarters);
      for (i32 q = 0; q < 4; ++q) {
        __builtin_memcpy(plane + q * outputs + done, bytes + 4 * q, 4);
      }
    }
    for (; done < outputs; ++done) {
      for (i32 q = 0; q < 4; ++q) plane[q * outputs + done] = round_to_byte(sums[4 * done + q]);
    }
  }
}
#endif

/// Reduces the maximum of `pictures` to one channel of an observation.
///
/// `plane` receives rows.target x columns.target bytes, `stride` bytes apart.
COORDRL_HD inline void reduce(
    const Reduction& plan, const Pictures& pictures, u8* plane, i32 stride) {
  if (plan.rows.whole > 0 && plan.columns.whole > 0) {
    reduce_whole(plan, pictures, plane, stride);
#ifdef COORDRL_PAIRS
  } else if (plan.quarters == 4 && plan.taps == 3 && stride == 1 && pictures.count <= 2 &&
             pictures.intensity == nullptr && __builtin_cpu_supports("avx2")) {
    reduce_pairs(plan, pictures, plane);
#endif
  } else if (plan.quarters == 4 && plan.taps == 3) {
    reduce_fractional<4, 3>(plan, pictures, plane, stride);
  } else if (plan.quarters == 4) {
    reduce_fractional<4, 0>(plan, pictures, plane, stride);
  } else {
    reduce_fractional<1, 0>(plan, pictures, plane, stride);
  }
}

}  // namespace coordrl
