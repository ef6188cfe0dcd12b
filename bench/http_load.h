#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"

namespace moiety::bench {

/// Takes server-sent events apart: `data:` lines up to an empty one.
class EventReader {
 public:
  /// The events that `piece` completes.
  std::vector<std::string> push(std::string_view piece);

 private:
  std::string pending_;
};

struct HttpLoadOptions {
  std::string url;    ///< "http://127.0.0.1:8000"
  std::string model;  ///< as the server calls it
  std::int32_t streams = 16;
  std::int32_t requests = 1;  ///< of each stream, one after the other
  std::int32_t prompt_tokens = 64;
  std::int32_t max_tokens = 64;
  std::int32_t vocab_size = 0;  ///< prompts are random ids below it
  std::uint64_t seed = 1;
};

/// What a closed loop of streams saw.
struct HttpLoadResult {
  double seconds = 0;  ///< from the first request to the last answer's end
  std::int64_t prompt_tokens = 0, completion_tokens = 0;  ///< as the server counts them
  std::vector<double> first_token_seconds;                ///< of each request: its first text
  std::vector<double> gap_seconds;                        ///< between a request's pieces of text
  double tokens_per_second() const;                       ///< prompt and generated
};

/// Every stream asks for a greedy completion of a random prompt over POST /v1/completions with
/// server-sent events, and again when it has ended. The first error of any stream ends all of them
/// after their current request, and is returned; so does `stop`, with kCancelled.
Result<HttpLoadResult> run_http_load(const HttpLoadOptions& options, const std::atomic<bool>& stop);

/// The value that a share `fraction` of the values does not exceed; 0 without values.
double percentile(std::vector<double> values, double fraction);

}  // namespace moiety::bench
