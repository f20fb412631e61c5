// Documents stored as centroids and residuals, on the CPU.
#pragma once

#include "../maxsim_common/residuals.h"
#include "isa.h"

namespace maxsim {
namespace cpu {

// scores [pairs]; argmax [pairs, argmax_width] or null. Throws std::runtime_error that names the first code which is no
// centroid's number.
void residual_forward(const Problem& problem, const Residuals& residuals, Path path, float* scores, int32_t* argmax);

// scores [pairs]: the sum over query tokens of the best centroid score of a document's tokens, 0 for a document without
// any, -inf for one without a probed centroid. A code that is no centroid's number counts as 0.
void approx_forward(const Problem& problem, const Approximation& approximation, float* scores);

}  // namespace cpu
}  // namespace maxsim
