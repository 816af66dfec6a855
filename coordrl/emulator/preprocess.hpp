// From two pictures of the console to one plane of an observation.
//
// A step's last two frames are turned to gray (or to red, green and blue), their maximum is taken
// pixel by pixel, so that objects which a game draws in every other frame only stay visible, and
// the result is reduced to the size of an observation by averaging over areas. All three happen
// row by row in one pass.
//
// The averages are OpenCV's INTER_AREA (modules/imgproc/src/resize.cpp, release 4.10) to the last
// bit: the same float32 weights, products and sums in the same order. A multiplication and the
// addition after it are two roundings there, so this file must be compiled without contraction
// to fused multiply-add (-ffp-contract=off, NVRTC --fmad=false).
#pragma once

#include "tia.hpp"

namespace coordrl {

constexpr i32 kMaxHeight = 250;  // lines of the tallest picture (PAL)
constexpr f64 kEpsilon = 2.220446049250313e-16;  // of a double

/// How much of which source pixels an output pixel averages, along one axis.
struct AreaTaps {
  i32 first;   // first source pixel
  i32 count;   // consecutive source pixels
  i32 weight;  // index of the first pixel's weight in AreaAxis::weights
};

/// The reduction of one axis from `source` to `target` pixels, target <= source <= kMaxHeight.
struct AreaAxis {
  i32 source, target;
  i32 whole;  // source / target where floating point finds that to be a whole number, else 0
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

/// Rounds to the nearest integer, ties to even, for 0 <= value <= 255.
COORDRL_HD inline u8 round_to_byte(f32 value) {
#ifdef __CUDA_ARCH__
  return u8(__float2int_rn(value));
#else
  const f32 shifted = value + 12582912.0f;  // from 1.5 * 2^23 on a float32 has no fraction
  u32 bits;
  __builtin_memcpy(&bits, &shifted, 4);
  return u8(bits);
#endif
}

/// The plan of a reduction from pictures of kWidth x height pixels.
///
/// Where the width of an observation is a multiple of four, the four quarters of a line are
/// averaged side by side: their taps are the same, and four pixels fill a vector register. The
/// weights of one quarter may differ from another's in the last bit, so each has its own.
struct Reduction {
  AreaAxis rows, columns;
  i32 quarters;     // parts of a line that are averaged side by side: 4 or 1
  i32 taps;         // pixels that an average of columns takes, 0 weights included
  u8 first[kWidth]; // first source pixel of output i, counted in its quarter
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

/// What is reduced: the pixelwise maximum of one to three pictures, seen through a table.
///
/// Two are a step's last frames. A step that ends one frame early has a third: its maximum still
/// holds the picture of the step before.
struct Pictures {
  const u8* pixels[3];  // color indices, kWidth to a line
  i32 count;
  const u8* intensity;  // 256 entries: what a color index contributes to the channel at hand;
                        // nullptr: `pixels` are intensities already
};

COORDRL_HD inline bool equals_row_above(const Pictures& pictures, i32 row) {
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

/// Whole numbers of rows and columns: OpenCV adds bytes as integers and divides once.
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
  i32 averaged = -1;  // the row that `averages` is of
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

/// Reduce the maximum of `pictures` to one channel of an observation.
///
/// `plane` receives rows.target x columns.target bytes, `stride` bytes apart.
COORDRL_HD inline void reduce(
    const Reduction& plan, const Pictures& pictures, u8* plane, i32 stride) {
  if (plan.rows.whole > 0 && plan.columns.whole > 0) {
    reduce_whole(plan, pictures, plane, stride);
  } else if (plan.quarters == 4 && plan.taps == 3) {
    reduce_fractional<4, 3>(plan, pictures, plane, stride);
  } else if (plan.quarters == 4) {
    reduce_fractional<4, 0>(plan, pictures, plane, stride);
  } else {
    reduce_fractional<1, 0>(plan, pictures, plane, stride);
  }
}

}  // namespace coordrl
