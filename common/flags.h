#pragma once

#include <CLI/CLI.hpp>
#include <cmath>
#include <string>

/// Checks of command-line values that CLI11's own let something through. For the files that define
/// flags: it includes all of CLI11.
namespace moiety {

/// For transform(): a number of bytes, with a unit if one likes (24GiB). CLI::AsSizeValue alone
/// takes -5 for 2^64 - 5.
inline CLI::Validator as_bytes() {
  const CLI::AsSizeValue size(false);
  return CLI::Validator(
      [size](std::string& text) {
        if (text.find('-') != std::string::npos)
          return "Value " + text + " is negative, give a number of bytes";
        return size(text);
      },
      size.get_description());
}

/// For check(): a finite number from `least` to `most`. CLI::Range alone takes nan.
inline CLI::Validator number_in(double least, double most) {
  const CLI::Range range(least, most);
  return CLI::Validator(
      [range](std::string& text) {
        double value = 0;
        if (CLI::detail::lexical_cast(text, value) && !std::isfinite(value))
          return "Value " + text + " is no number";
        return range(text);
      },
      range.get_description());
}

}  // namespace moiety
