#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "fabric/lane.h"

namespace moiety::fabric {

/// Raised whenever the bytes of a hello, a Header or a payload change meaning. Both sides refuse
/// another one.
inline constexpr std::uint32_t kLaneVersion = 1;
/// A longer hello is not one of ours.
inline constexpr std::size_t kMaxHelloBytes = 4096;
/// A longer payload is refused by the sender and ends the lane at the receiver.
inline constexpr std::uint64_t kMaxPayloadBytes = std::uint64_t{1} << 30;

/// What a router says first on a new connection.
struct HelloRequest {
  std::uint64_t router = 0;
  std::uint64_t worker = 0;       ///< whom it means to reach
  std::uint64_t incarnation = 0;  ///< of that worker
  std::string token;
};

/// The bytes of a hello: "MOYH", version u32, router u64, worker u64, incarnation u64, token length
/// u32, token. Integers are little endian.
std::vector<std::byte> encode_hello(const HelloRequest& request);

/// A port's verdict on a hello, and the bytes to answer with: "MOYA", version u32, worker u64,
/// incarnation u64, name length u32, name of an error code (empty: accepted), message length u32,
/// message. A refusal for the version or the token says nothing of the worker (both ids are 0).
struct HelloVerdict {
  bool accepted = false;
  std::uint64_t router = 0;  ///< who asked; 0 when the request could not be read
  std::string refusal;       ///< for the log
  std::vector<std::byte> answer;
};

/// Judges a request by the port's own identity. Any bytes are allowed. The token is compared first,
/// in time that does not depend on where it differs.
HelloVerdict judge_hello(std::span<const std::byte> request, const LaneIdentity& port);

/// Reads a port's answer at the router. kInvalidArgument: another token. kLeaseLost: another worker
/// or incarnation answers there. kFailedPrecondition: another version. kDataLoss: not an answer of
/// ours.
Result<void> check_hello_answer(std::span<const std::byte> answer,
                                std::uint64_t worker,
                                std::uint64_t incarnation);

/// kInvalidArgument when a payload is longer than a lane carries.
Result<void> check_payload_size(std::size_t bytes);

/// Whether a header from outside is one of ours: its magic and its kind.
bool valid_header(const Header& header);

}  // namespace moiety::fabric
