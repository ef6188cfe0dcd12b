#pragma once

#include <string>
#include <vector>

#include "cli/command.h"

namespace moiety::cli {

struct FabricFlags {
  std::vector<std::string> fabrics = {"ucx", "mpi"};
  std::string tokens = "1,16,256";
  std::int32_t workers = 4;
  std::int32_t fan_out = 0;  ///< 0: 2, or 1 with one worker
  std::int32_t top_k = 8;
  std::int32_t hidden_size = 2048;
  std::int32_t rounds = 500;
};

/// Runs a router and stand-in workers that compute nothing, as processes, over each fabric in turn;
/// one object per fabric and number of tokens: fabric, tokens, layer_us (median), layer_us_p10,
/// layer_us_p90, bytes_sent, bytes_received (per layer), bytes_as_counted. A fabric that this
/// machine lacks has an `error` instead.
Result<boost::json::array> measure_fabrics(const FabricFlags& flags, bool progress);
/// An error when a lane's count of bytes is not the one that follows from the formats.
Result<void> check_bytes(const boost::json::array& results);
/// As a table.
void print_fabrics(const FabricFlags& flags, const boost::json::array& results);

}  // namespace moiety::cli
