// What goes wrong inside, until the border of the library turns it into a status.
#pragma once

#include <stdexcept>
#include <string>

#include "fasttracks.h"

namespace ft {

struct Error : std::runtime_error {
  Error(ft_status status, const std::string& text) : std::runtime_error(text), status(status) {}
  ft_status status;
};

}  // namespace ft
