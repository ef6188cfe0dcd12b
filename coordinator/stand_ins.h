#pragma once

#include <chrono>

namespace moiety::coordinator {

/// A worker that could not load what it should stand in with is not asked to stand in for so long.
/// `moiety up` starts an MPI world again that lacks experts for some seconds: it must have been
/// tried again by then.
inline constexpr std::chrono::seconds kNoStandInAfterFailure{2};

}  // namespace moiety::coordinator
