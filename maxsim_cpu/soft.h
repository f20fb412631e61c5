// The soft maximum's two entries: score = sum over query tokens of tau * log sum over document tokens of exp(s / tau).
#pragma once

#include "launch.h"

namespace maxsim {
namespace cpu {

// What one unit of a logarithm to base 2 is in similarity.
inline double soft_unit(double tau) { return tau * 0.69314718055994530942; }

// scores [pairs]; soft_max [pairs, argmax_width], each query token's part of the score, or null.
void soft_forward(const Problem& problem, Path path, double tau, float* scores, float* soft_max);

// Gradients in the inputs' dtypes, contiguous, zeroed by the caller; null = not needed. `soft_max` is the forward's.
void soft_backward(const Problem& problem, Path path, double tau, const float* grad_scores, const float* soft_max,
                   void* grad_queries, void* grad_documents);

}  // namespace cpu
}  // namespace maxsim
