// Where the bus is and who this is, as the test says it.
export const options = {
  servers: process.env.ATOLL_BUS,
  token: process.env.ATOLL_TOKEN,
  inboxPrefix: process.env.ATOLL_INBOX_PREFIX,
};
