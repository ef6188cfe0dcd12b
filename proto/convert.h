#pragma once

#include <string>
#include <string_view>

#include "common/result.h"
#include "proto/control.h"

namespace moiety::proto {

/// What a message may hold at most, in either direction. Generous for any real model or fleet; they
/// bound what a broken or hostile peer can make us store.
inline constexpr std::size_t kMaxLayers = 4096;
inline constexpr std::size_t kMaxExpertsPerLayer = 65536;
inline constexpr std::size_t kMaxExperts = std::size_t{1} << 20;  ///< of a placement, all layers
inline constexpr std::size_t kMaxWorkers = 65536;
inline constexpr std::size_t kMaxDeployments = 4096;
inline constexpr std::size_t kMaxNameBytes = 1024;          ///< names, tokens, builds, fingerprints
inline constexpr std::size_t kMaxAddressBytes = 64u << 10;  ///< lane and HTTP addresses
inline constexpr std::size_t kMaxTextBytes = 8u << 10;      ///< reasons and messages for people
inline constexpr std::chrono::hours kMaxDuration{24 * 365};  ///< leases and intervals

/// Checks a message's own rules: ranges, sizes, ascending lists, deployments that fit the
/// placement. kInvalidArgument names the message and the field.
Result<void> validate(const ControlMessage& message);

/// The payload of a frame. Reasons and error messages beyond kMaxTextBytes are cut.
/// kInvalidArgument: the message is not valid, or is longer than kMaxMessageBytes.
Result<std::string> encode(const ControlMessage& message);

/// Reads bytes of a peer; what comes back is valid. kDataLoss says what is wrong with them.
Result<ControlMessage> decode(std::string_view payload);

}  // namespace moiety::proto
